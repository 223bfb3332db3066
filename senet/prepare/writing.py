"""Writing a data set that a killed run leaves unfinished but never wrong: plans, folders that appear whole, work over
processes.
"""

from __future__ import annotations

import io
import json
import logging
import os
import secrets
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from senet.data.philox import Ints
from senet.data.storage.index import Index, Names, index_file, stamp
from senet.errors import RunError, UsageError

Job = TypeVar("Job")
Result = TypeVar("Result")
PLAN = "plan.json"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Encoding:
    """Which images are made smaller: those whose shorter side is over `short_side` pixels, as JPEG; others stay byte
    for byte.

    So do images that are neither grey nor RGB, and those that cannot be decoded (an audit names them).
    """

    short_side: int | None = None
    quality: int = 90

    def __post_init__(self) -> None:
        if self.short_side is not None and self.short_side < 1:
            raise UsageError(f"--short-side {self.short_side}: must be at least 1 pixel")
        if not 1 <= self.quality <= 100:
            raise UsageError(f"--quality {self.quality}: a JPEG quality is 1 to 100")

    @property
    def plan(self) -> dict[str, Any]:
        return asdict(self) if self.short_side else {"short_side": None}

    def __call__(self, original: bytes) -> bytes:
        if self.short_side is None:
            return original
        try:
            with Image.open(io.BytesIO(original)) as image:
                if min(image.size) <= self.short_side or image.mode not in ("L", "RGB"):
                    return original
                width, height = (round(side * self.short_side / min(image.size)) for side in image.size)
                file = io.BytesIO()
                # EXIF says which side is up.
                exif = image.info.get("exif", b"") if image.format == "JPEG" else b""
                image.resize((width, height), Image.Resampling.LANCZOS).save(
                    file, "JPEG", quality=self.quality, exif=exif
                )
                return file.getvalue()
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return original


def begin(folder: Path, split: str, plan: dict[str, Any]) -> bool:
    """Whether `split` is complete in `folder`. Raises UsageError where one of another plan, or of none, is there."""
    found = _plans(folder).get(split)
    if found is None:
        if (folder / split).is_dir() and any((folder / split).iterdir()):
            raise UsageError(f"{folder / split}: not empty, and no {PLAN} says what it is; name another folder")
        return False
    if differ := [key for key, value in plan.items() if found.get(key) != value]:
        there = ", ".join(f"{key} {found.get(key)} instead of {plan[key]}" for key in differ)
        raise UsageError(
            f"{folder}: {split} was begun otherwise ({there}); give the same again, or name another folder"
        )
    if not found.get("complete") or not (folder / split).is_dir():
        return False
    # A list out of date says that somebody has added or removed something: look closer.
    return Index.load(folder, index_file(folder, split), stamp(folder, split)) is not None


def mark(folder: Path, split: str, plan: dict[str, Any], complete: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    plans = _plans(folder) | {split: plan | {"complete": complete}}
    put(folder / PLAN, json.dumps(plans, indent=1).encode() + b"\n")


def _plans(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / PLAN).read_text())
    except FileNotFoundError:
        return {}
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(plan, dict) for plan in found.values()):
        raise UsageError(f"{folder / PLAN}: damaged; remove {folder} and prepare again")
    return found


def put(path: Path, content: bytes) -> None:
    """Whole or not at all: what has its name is complete."""
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    part.write_bytes(content)
    part.replace(path)


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A hidden folder to fill, which becomes `folder` in one step. Its name is its own, so that runs side by side do no
    harm.
    """
    part = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
    part.mkdir(parents=True)
    try:
        yield part
        if not folder.exists():
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def clear(base: Path) -> None:
    """Remove what killed runs left unfinished."""
    for path in base.glob("*.part"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def each(task: Callable[[Job], Result], jobs: Iterable[Job], processes: int | None = None) -> Iterator[Result]:
    """The results of `task`, in the order in which they are done, by as many `processes` as there are cores by default.

    Few jobs are in memory at a time. The processes end with this one, however it ends.
    """
    if processes is None:
        processes = len(os.sched_getaffinity(0))
    if processes < 1:
        raise UsageError(f"--processes {processes}: must be at least 1")
    if processes == 1:
        yield from map(task, jobs)
        return
    context = get_context("forkserver")  # one process imports, and is forked before it has threads
    context.set_forkserver_preload([__name__])
    theirs, ours = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(processes, context, initializer=_attend, initargs=(theirs,))
    waiting: set[Future[Result]] = set()
    try:
        for job in jobs:
            waiting.add(pool.submit(task, job))
            while len(waiting) >= 2 * processes:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    except BrokenProcessPool:
        raise RunError(
            "a worker process was killed (out of memory?); run it again to go on, with fewer --processes"
        ) from None
    except BaseException:
        ours.close()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        ours.close()
        theirs.close()


def _attend(theirs: Connection) -> None:
    """End this process in the midst of its task when the first one has gone, or given up. Ctrl-C is for that one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        theirs.poll(None)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def progress(what: str, total: int, unit: str = "image") -> tqdm[Any]:
    """A bar with the time that is left; none where nobody looks at a terminal."""
    return tqdm(total=total, desc=what, unit=f" {unit}s", leave=False, dynamic_ncols=True, disable=None)


def read(index: Index, image: int) -> bytes:
    try:
        return index.read(image)
    except OSError as error:
        raise UsageError(
            f"{index.path(image)}: cannot be read ({error.strerror or error}); mend the source and run it again"
        ) from None


def part_of(index: Index, images: NDArray[Any]) -> Index:
    """Some of the images, small enough to send to another process: with their own names only."""
    return replace(index.subset(images), names=Names.of(index.names[int(i)] for i in images))


def require_space(folder: Path, needed: int, encoding: Encoding) -> None:
    """Raises UsageError where `needed` bytes do not fit. How much smaller re-encoding makes them nobody knows: a
    warning only.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free >= needed:
        return
    sizes = f"{needed / 1e9:.1f} GB to write, {free / 1e9:.1f} GB free"
    if encoding.short_side is None:
        raise UsageError(
            f"{folder}: {sizes}; free some space, name another folder, or make images smaller with --short-side"
        )
    log.warning(
        "%s: %s before making images smaller; should it not be enough, free some space and run it again", folder, sizes
    )


def write_folders(index: Index, to: Path, split: str, encoding: Encoding, processes: int | None = None) -> None:
    """Write an `index` of archives, whose names are SPLIT/CLASS/FILE, as image folders below `to`. Raises UsageError as
    `fill`.
    """
    assert index.places is not None
    absent = np.array([not (to / split / name).is_dir() for name in index.classes])[index.labels]
    require_space(to, int((-(-index.places[absent, 2] // 4096) * 4096).sum()), encoding)
    fill(index, to, split, lambda folder, images: (folder, encoding, part_of(index, images)), _write_class, processes)


def fill(
    index: Index,
    to: Path,
    split: str,
    job: Callable[[Path, Ints], Job],
    task: Callable[[Job], int],
    processes: int | None = None,
) -> None:
    """Have `task` do the `job` of each class folder of `index` that is not there, then save the list of all.

    A job is made of a folder and its images; the task returns how many it wrote. A class folder must appear when it is
    complete: it is not written again. Raises UsageError where one holds something else.
    """
    bounds = np.searchsorted(index.labels, np.arange(len(index.classes) + 1))
    spans = {to / split / name: np.arange(*bounds[label : label + 2]) for label, name in enumerate(index.classes)}
    missing = {folder: images for folder, images in spans.items() if not folder.is_dir()}
    with progress(f"writing {split}", sum(map(len, missing.values()))) as bar:
        for written in each(task, (job(folder, images) for folder, images in missing.items()), processes):
            bar.update(written)
    clear(to / split)
    for folder, images in spans.items():
        if len(os.listdir(folder)) != len(images):
            raise UsageError(
                f"{folder}: holds other files than its {len(images)} images; remove this folder and run it again"
            )
    Index(to, index.names, index.labels, index.classes).save(index_file(to, split), stamp(to, split))


def _write_class(job: tuple[Path, Encoding, Index]) -> int:
    folder, encoding, images = job
    with appearing(folder) as part:
        for image in range(len(images)):
            (part / images.names[image].rpartition("/")[2]).write_bytes(encoding(read(images, image)))
    return len(images)
