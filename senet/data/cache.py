"""Images decoded once, by PIL and at their size, into memory that all ranks of a node share (`--cache ram`).

The memory is a file without a name (memfd_create), which a node's first rank makes and the others open through /proc:
it is gone with the last process that has it, however that ends, and no limit of /dev/shm holds for it. The file is
sparse: each rank writes what it decodes into a region of its own, and a table at the start says where images are.
"""

from __future__ import annotations

import logging
import mmap
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from senet.data.philox import Ints, permutation
from senet.data.pixels import decode, head
from senet.data.storage.index import Index, Storage
from senet.errors import UsageError

REGION = 1 << 40  # bytes from where one rank writes to where the next does
ROW = 40  # bytes of the table for an image
SAMPLE = 512  # images of a split, to tell how large all are
PART = 16  # images that a thread decodes in one go
ROUND = 60.0  # seconds after which ranks hear of each other: a collective waits for minutes, and decoding may take more

log = logging.getLogger(__name__)
_kept: dict[tuple[Path, str], Index] = {}  # by root and fingerprint


def cached(index: Index) -> Index:
    """Return the images of `index` as this process keeps them in memory; as they are, if it does not."""
    return _kept.get(_name(index), index)


def _name(index: Index) -> tuple[Path, str]:
    return index.storage.root, index.fingerprint


def keep(indices: Sequence[Index], threads: int, exchange: Callable[[Any], list[Any]]) -> None:
    """Decode images into memory until the process ends, a share on each rank of a node, in so many `threads`.

    All ranks call it; `exchange` returns what each rank gives it. What cannot be decoded stays as it is. Raises
    UsageError, on all ranks, if the memory of a node is too small.
    """
    rank, local, ranks = (int(os.environ.get(name, "0")) for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    indices = [index for index in indices if _name(index) not in _kept]
    refusal, own = "" if local else _refusal(indices), list[int]()
    if not local and not refusal:
        own = [os.memfd_create("senet") for _ in indices]
        for number, index in zip(own, indices, strict=True):
            os.ftruncate(number, ROW * len(index))
    told = exchange((refusal, os.getpid(), own))
    if refusals := [text for text, _, _ in told if text]:
        raise UsageError(refusals[0])
    _, first, numbers = told[rank - local]
    try:
        files = own or [os.open(f"/proc/{first}/fd/{number}", os.O_RDWR) for number in numbers]
    except OSError as error:
        raise UsageError(
            f"--cache ram: the memory of process {first} cannot be opened ({error.strerror}); leave it out, or start "
            "the ranks of a node in one container"
        ) from None
    waiting = deque[tuple[Cached, Ints]]()
    for index, number in zip(indices, files, strict=True):
        images = Cached.of(index.storage, Memory(number, (local + 1) * REGION))
        share = np.array_split(index.storage.packing_order(0), max(1, ranks))[local]
        waiting += ((images, part) for part in np.array_split(share, 1 + len(share) // PART) if len(part))
        _kept[_name(index)] = Index(images, index.labels, index.classes)
    total, quiet = sum(map(len, indices)), None if rank == 0 else True  # None: on a terminal only
    with (
        ThreadPoolExecutor(threads, thread_name_prefix="cache") as pool,
        tqdm(desc="decoding", total=total, unit=" images", leave=False, dynamic_ncols=True, disable=quiet) as shown,
    ):
        while any(exchange(len(waiting))):
            began = time.monotonic()
            while waiting and time.monotonic() - began < ROUND:
                some = [waiting.popleft() for _ in range(min(4 * threads, len(waiting)))]
                for count in pool.map(lambda job: job[0].fill(job[1]), some):
                    shown.update(min(count * max(1, ranks), total - shown.n))
    if indices and rank == 0:
        taken = sum(int(cached(index).storage.columns["spans"][:, 2].sum()) for index in indices)
        log.info("%d images are decoded in memory, %.3g GB on each node", total, taken / 1e9)


class Memory:
    """An open file in memory, of which this process writes to what begins at the byte `end`."""

    def __init__(self, number: int, end: int) -> None:
        self.number, self.end, self.lock = number, end, threading.Lock()

    def add(self, pixels: NDArray[np.uint8]) -> int:
        """Write pixels; returns their first byte."""
        with self.lock:
            start, self.end = self.end, self.end + pixels.nbytes
        os.pwrite(self.number, pixels.data, start)
        return start


@dataclass(frozen=True)
class Cached(Storage):
    """Images of another storage, `original`, whose pixels are in `memory`, a file: `spans` [n, 3] and `shapes` [n, 2]
    are as those of Archives, zeros for what cannot be decoded.
    """

    original: Storage = field(kw_only=True)
    memory: Memory = field(kw_only=True)

    @classmethod
    def of(cls, original: Storage, memory: Memory) -> Cached:
        """Take a storage whose images are to be filled in, by this process and others."""
        numbers = np.arange(len(original.names))
        table = np.frombuffer(mmap.mmap(memory.number, ROW * len(numbers)), np.int64).reshape(-1, ROW // 8)
        columns = {"originals": numbers, "spans": table[:, :3], "shapes": table[:, 3:]}
        return cls(original.root, original.names, original.stamp, columns, original=original, memory=memory)

    def fill(self, images: Ints) -> int:
        """Decode images that can be; returns how many were to be."""
        for image in images.tolist():
            try:
                content = self.original.read(image)
                head(content)
                pixels = np.array(decode(content))
            except (OSError, ValueError, SyntaxError):
                continue  # whoever wants it meets this again, and says so
            self.columns["spans"][image] = 0, self.memory.add(pixels), pixels.nbytes
            self.columns["shapes"][image] = pixels.shape[:2]
        return len(images)

    @property
    def files(self) -> list[str]:
        return [f"/proc/self/fd/{self.memory.number}"]

    def read(self, image: int) -> bytes:
        return self.original.read(int(self.columns["originals"][image]))

    def file(self, image: int) -> Path:
        return self.original.file(int(self.columns["originals"][image]))

    def path(self, image: int) -> str:
        return self.original.path(int(self.columns["originals"][image]))

    def sizes(self) -> Ints:
        sizes: Ints = self.original.sizes()[self.columns["originals"]]
        return sizes


def _refusal(indices: Sequence[Index]) -> str:
    """Return why images do not fit into the memory of this machine, nothing if they do: by a sample of them."""
    needed, free = 0.0, _free()
    for index in indices:
        sizes = []
        for image in permutation(0, 0, len(index))[:SAMPLE].tolist():
            try:
                height, width, _ = head(index.storage.read(image))
                sizes.append(3 * height * width)
            except (OSError, ValueError, SyntaxError):
                continue
        needed += len(index) * float(np.mean(sizes)) if sizes else 0.0
    if needed < free:
        return ""
    return (
        f"--cache ram: {sum(map(len, indices))} images take about {needed / 1e9:.3g} GB decoded, and {free / 1e9:.3g} "
        "GB of memory are free; leave it out, or make the images smaller: "
        "launch.prepare shards FROM TO --decoded --short-side 256"
    )


def _free() -> int:
    """Return the bytes of memory that are free, on this machine and in the control groups of this process."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
    own = Path("/proc/self/cgroup").read_text().partition("0::/")[2].strip()  # of version 2
    group = Path("/sys/fs/cgroup") / own
    for folder in (group, *group.parents[:-3]):
        try:
            most, used = ((folder / name).read_text() for name in ("memory.max", "memory.current"))
            files = (folder / "memory.stat").read_text().partition("inactive_file ")[2].split()[0]
            free.append(int(most) - int(used) + int(files))
        except (OSError, ValueError, IndexError):
            continue  # without a limit
    return min(free)
