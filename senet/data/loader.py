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
from senet.data.augment import Augmentation, Drawn, neighbours
from senet.data.draws import Ints
from senet.errors import RunError

AHEAD = 3  # batches prepared in advance


class Batch(NamedTuple):
    images: Tensor  # float32 [b, 3, H, W], channels_last, normalised, on the device
    labels: Tensor  # int64 [b]
    others: Tensor | None = None  # int64 [b], labels of what each image is mixed with
    weights: Tensor | None = None  # float32 [b], shares of the images themselves, 1/2 to 1
    keys: Ints | None = None  # [b], which images they are (see `order`), on the host


class Raw(NamedTuple):
    """What a backend makes, on the host or the device: uint8 pixels [b, H, W, 3], or float32 when it has normalised them; labels [b]."""

    pixels: Tensor
    labels: Tensor
    epoch: int = 0
    keys: Ints | None = None  # [b], of training images (see `order`)


class Loader(Protocol):
    images: int
    description: dict[str, Any]  # how pixels are made; plain values

    bad: Bad
    fingerprint: str  # of the images, their order and labels
    classes: tuple[str, ...]  # names by label; empty where the data set does not tell them

    @property
    def waited(self) -> float:
        """Seconds that the consumer spent waiting for data."""

    def close(self) -> None: ...


class TrainLoader(Loader, Protocol):
    steps: int
    micro_batches: int

    def batches(self, epoch: int, step: int) -> Generator[Batch, None, None]:
        """The micro-batches from a step to the end of its epoch, all of one size."""

    def names(self, step: int) -> list[str]:
        """This rank's images in a step counted over the whole run."""


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
    """Moves raw batches to the device, augments and normalises them there; a thread prepares a few ahead of their consumer."""

    def __init__(self, data: Data, device: torch.device, augmentation: Augmentation | None = None) -> None:
        self.device, self.augmentation = device, augmentation
        self.scale = 1 / (255 * torch.tensor(data.std, device=device))
        self.shift = -torch.tensor(data.mean, device=device) / torch.tensor(data.std, device=device)
        self.waited = 0.0

    def __call__(self, source: Callable[[], Iterable[Raw]]) -> Generator[Batch, None, None]:
        ready: queue.Queue[tuple[Raw, Drawn] | BaseException | None] = queue.Queue(AHEAD)
        abandoned = threading.Event()

        def put(item: tuple[Raw, Drawn] | BaseException | None) -> bool:
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
                    drawn = Drawn()
                    if self.augmentation and raw.keys is not None:
                        drawn = self.augmentation.draw(raw.epoch, raw.keys, raw.pixels.shape[1])
                    if self.device.type == "cuda" and not raw.pixels.is_cuda:
                        raw = raw._replace(pixels=raw.pixels.pin_memory(), labels=raw.labels.pin_memory())
                    if not put((raw, drawn)):
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
                yield self.finish(*item)
        finally:
            abandoned.set()
            thread.join()

    def finish(self, raw: Raw, drawn: Drawn) -> Batch:
        labels = raw.labels.to(self.device, torch.int64, non_blocking=True)
        if raw.pixels.is_floating_point():
            return Batch(raw.pixels.permute(0, 3, 1, 2), labels, keys=raw.keys)
        pixels = raw.pixels.to(self.device, non_blocking=True).float()
        if self.augmentation is None:
            return Batch(self._normalise(pixels), labels, keys=raw.keys)
        drawn = drawn.to(self.device)
        images = self.augmentation.mix(self._normalise(self.augmentation.change(pixels, drawn)), drawn)
        if drawn.weights is None:
            return Batch(images, labels, keys=raw.keys)
        return Batch(images, labels, neighbours(labels), drawn.weights, raw.keys)

    def _normalise(self, pixels: Tensor) -> Tensor:
        """In place, float [b, H, W, 3] in 0..255. Whole rows at once: a loop over three channels would cost more than the arithmetic."""
        rows = pixels.flatten(2)
        width = pixels.shape[2]
        torch.addcmul(self.shift.repeat(width), rows, self.scale.repeat(width), out=rows)
        return pixels.permute(0, 3, 1, 2)
