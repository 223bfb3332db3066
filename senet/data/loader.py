"""The contract of all loaders, and what they have in common: prefetching, and the way from bytes to what the net sees."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from senet.config import Data
from senet.errors import RunError

AHEAD = 3  # batches prepared in advance


class Batch(NamedTuple):
    images: Tensor  # float32 [b, 3, H, W], channels_last, normalised, on the device
    labels: Tensor  # int64 [b]


class Raw(NamedTuple):
    """What a backend makes: uint8 pixels [b, H, W, 3] and labels [b], on the host or the device."""

    pixels: Tensor
    labels: Tensor


class Loader(Protocol):
    images: int
    description: dict[str, Any]  # how pixels are made; plain values

    bad: Bad
    fingerprint: str  # of the images, their order and labels

    @property
    def waited(self) -> float:
        """Seconds that the consumer spent waiting for data."""

    def close(self) -> None: ...


class TrainLoader(Loader, Protocol):
    steps: int
    micro_batches: int

    def batches(self, epoch: int, step: int) -> Generator[Batch, None, None]:
        """The micro-batches from a step to the end of its epoch, all of one size."""


class ValLoader(Loader, Protocol):
    def batches(self) -> Iterator[Batch]:
        """This rank's part of the validation set, each image that can be decoded once."""


class Bad(dict[str, str]):
    """Undecodable images that this rank met: path -> reason, at most `limit` of them."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def note(self, path: str, reason: object) -> None:
        self.setdefault(path, " ".join(str(reason).split())[:200])
        self.check(self)

    def check(self, found: Mapping[str, str]) -> None:
        """Raise RunError, listing them, when `found`, by this rank or by all, is more than the limit."""
        if len(found) > self.limit:
            listed = "\n".join(f"  {path}: {why}" for path, why in sorted(found.items()))
            raise RunError(
                f"{len(found)} images cannot be decoded, more than --max-bad {self.limit}; mend or remove them, or let "
                f"launch.prepare audit list them all:\n{listed}"
            )


class Finish:
    """Moves raw batches to the device and normalises them there, a few ahead of their consumer, on a thread."""

    def __init__(self, data: Data, device: torch.device) -> None:
        self.device = device
        self.scale = (1 / (255 * torch.tensor(data.std, device=device))).view(3, 1, 1)
        self.shift = (-torch.tensor(data.mean, device=device) / torch.tensor(data.std, device=device)).view(3, 1, 1)
        self.waited = 0.0

    def __call__(self, source: Callable[[], Iterable[Raw]]) -> Generator[Batch, None, None]:
        ready: queue.Queue[Raw | BaseException | None] = queue.Queue(AHEAD)
        abandoned = threading.Event()

        def put(item: Raw | BaseException | None) -> bool:
            while not abandoned.is_set():
                try:
                    ready.put(item, timeout=0.1)
                    return True
                except queue.Full:
                    continue
            return False

        def work() -> None:
            try:
                for raw in source():
                    if self.device.type == "cuda" and not raw.pixels.is_cuda:
                        raw = Raw(raw.pixels.pin_memory(), raw.labels.pin_memory())
                    if not put(raw):
                        return
                put(None)
            except BaseException as error:
                put(error)

        thread = threading.Thread(target=work, name="loader", daemon=True)
        thread.start()
        try:
            while True:
                began = time.monotonic()
                item = ready.get()
                self.waited += time.monotonic() - began
                if item is None:
                    return
                if isinstance(item, BaseException):
                    raise item
                yield self.normalise(item)
        finally:
            abandoned.set()
            thread.join()

    def normalise(self, raw: Raw) -> Batch:
        pixels = raw.pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        labels = raw.labels.to(self.device, torch.int64, non_blocking=True)
        return Batch(torch.addcmul(self.shift, pixels.float(), self.scale), labels)
