"""The contract of all loaders, and what they have in common: prefetching, and the way from bytes to what the
net sees.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from senet.config import Data
from senet.data.augment import Augmentation, AugmentParams, neighbours
from senet.data.philox import Ints
from senet.errors import RunError

AHEAD = 3  # batches that wait on the host; on a GPU it is one, with another in the making


class Batch(NamedTuple):
    # [b, 3, H, W], channels_last, normalised, on the device; float32, or rounded to what the net computes in
    images: Tensor
    labels: Tensor  # int64 [b]
    others: Tensor | None = None  # int64 [b], labels of what each image is mixed with
    weights: Tensor | None = None  # float32 [b], shares of the images themselves, 1/2 to 1
    keys: Ints | None = None  # [b], which images they are (see `order`), on the host


class Raw(NamedTuple):
    """What a backend makes, on the host or the device: uint8 pixels [b, H, W, 3], or float32 when it has normalised
    them; labels [b].
    """

    pixels: Tensor
    labels: Tensor
    epoch: int = 0
    keys: Ints | None = None  # [b], of training images (see `order`)


class Loader(Protocol):
    images: int
    description: dict[str, Any]  # how pixels are made; plain values

    bad: BadImages
    fingerprint: str  # of the images, their order and labels
    classes: tuple[str, ...]  # names by label; empty where the data set does not tell them

    @property
    def waited(self) -> float:
        """Seconds that the consumer spent waiting for data."""

    def close(self) -> None: ...


class TrainLoader(Loader, Protocol):
    steps: int
    accumulation_steps: int

    def batches(self, epoch: int, step: int) -> Generator[Batch, None, None]:
        """The micro-batches from a step to the end of its epoch, all of one size."""

    def names(self, step: int) -> list[str]:
        """This rank's images in a step counted over the whole run."""


class ValLoader(Loader, Protocol):
    def batches(self) -> Iterator[Batch]:
        """This rank's part of the validation set, each image that can be decoded once."""


class BadImages(dict[str, str]):
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


class DevicePipeline:
    """Moves raw batches to the device, augments and normalises them there; a thread prepares a few ahead of their
    consumer.

    On a GPU the thread does all of that, on a stream of its own: bytes travel and become numbers while the net
    computes. A host has no cores to spare for it: there the consumer finishes what the thread has read. `dtype`
    bfloat16 or float16 rounds the images once, as autocast would do it before the first convolution, in a pass less.
    """

    def __init__(
        self,
        data: Data,
        device: torch.device,
        augmentation: Augmentation | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.device, self.augmentation, self.dtype = device, augmentation, dtype
        self.scale = 1 / (255 * torch.tensor(data.std, device=device))
        self.shift = -torch.tensor(data.mean, device=device) / torch.tensor(data.std, device=device)
        self.stream = torch.cuda.Stream(device, priority=-1) if device.type == "cuda" else None
        self.waited = 0.0

    def __call__(self, source: Callable[[], Iterable[Raw]]) -> Generator[Batch, None, None]:
        ready: queue.Queue[Batch | tuple[Raw, AugmentParams] | BaseException | None] = queue.Queue(
            AHEAD if self.stream is None else 1
        )
        abandoned = threading.Event()

        def put(item: Batch | tuple[Raw, AugmentParams] | BaseException | None) -> bool:
            while not abandoned.is_set():
                try:
                    ready.put(item, timeout=0.1)
                    return True
                except queue.Full:
                    continue
            return False

        def work() -> None:
            try:
                with nullcontext() if self.stream is None else torch.cuda.stream(self.stream):
                    for raw in source():
                        drawn = AugmentParams()
                        if self.augmentation and raw.keys is not None:
                            drawn = self.augmentation.draw(raw.epoch, raw.keys, raw.pixels.shape[1])
                        if not put((raw, drawn) if self.stream is None else self._aside(raw, drawn, self.stream)):
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
                yield self._take(item) if isinstance(item, Batch) else self.finish(*item)
        finally:
            abandoned.set()
            thread.join()

    def _aside(self, raw: Raw, drawn: AugmentParams, stream: torch.cuda.Stream) -> Batch:
        """DevicePipeline a batch on a stream of its own, and wait for it, in the thread: what it was made from may be
        overwritten then.
        """
        if not raw.pixels.is_cuda:
            raw = raw._replace(pixels=raw.pixels.pin_memory(), labels=raw.labels.pin_memory())
        batch = self.finish(raw, drawn)
        done = torch.cuda.Event(blocking=True)
        done.record(stream)
        done.synchronize()
        return batch

    def _take(self, batch: Batch) -> Batch:
        """Its memory is the thread's stream's; it must not be given out again before the consumer's stream is done with
        it.
        """
        for part in batch:
            if isinstance(part, Tensor):
                part.record_stream(torch.cuda.current_stream(self.device))
        return batch

    def finish(self, raw: Raw, drawn: AugmentParams) -> Batch:
        labels = raw.labels.to(self.device, torch.int64, non_blocking=True)
        if raw.pixels.is_floating_point():
            return Batch(raw.pixels.permute(0, 3, 1, 2).to(self.dtype), labels, keys=raw.keys)
        pixels = raw.pixels.to(self.device, non_blocking=True)
        if self.augmentation is None and pixels.is_cuda:  # from bytes to the end in one pass
            return Batch(self._normalise(pixels, torch.empty_like(pixels, dtype=self.dtype)), labels, keys=raw.keys)
        pixels = pixels.float()
        if self.augmentation is None:
            return Batch(self._normalise(pixels, pixels).to(self.dtype), labels, keys=raw.keys)
        drawn = drawn.to(self.device)
        pixels = self.augmentation.change(pixels, drawn)
        images = self.augmentation.mix(self._normalise(pixels, pixels), drawn).to(self.dtype)
        if drawn.weights is None:
            return Batch(images, labels, keys=raw.keys)
        return Batch(images, labels, neighbours(labels), drawn.weights, raw.keys)

    def _normalise(self, pixels: Tensor, out: Tensor) -> Tensor:
        """[b, H, W, 3] in 0..255, into `out`. Whole rows at once: a loop over three channels would cost more than the
        arithmetic.
        """
        width = pixels.shape[2]
        torch.addcmul(self.shift.repeat(width), pixels.flatten(2), self.scale.repeat(width), out=out.flatten(2))
        return out.permute(0, 3, 1, 2)
