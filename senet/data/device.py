"""The way of a batch from bytes on the host to what the net sees."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

from senet.config import Data, Folder
from senet.data.augment import Augmentation, AugmentParams, neighbours
from senet.data.loader import AHEAD, Batch, Raw
from senet.data.resize import Buffers

CACHED = 1 << 18  # numbers


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
        self.memory_format = torch.channels_last
        self.large = isinstance(data, Folder)  # batches: small ones come faster than their queue is looked at
        self.scale = 1 / (255 * torch.tensor(data.std, device=device))
        self.shift = -torch.tensor(data.mean, device=device) / torch.tensor(data.std, device=device)
        self.stream = torch.cuda.Stream(device, priority=-1) if device.type == "cuda" else None
        self.buffers = Buffers(np.float32)
        self.waited = 0.0

    def __call__(self, source: Callable[[], Iterable[Raw]]) -> Generator[Batch, None, None]:
        """Yield the batches of `source`, and raise what it raises."""
        ready: queue.Queue[Batch | tuple[Raw, AugmentParams] | BaseException | None] = queue.Queue(
            1 if self.stream and self.large else AHEAD
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
                if self.stream is not None:  # a thread begins on GPU 0, and would leave a context of every rank there
                    torch.cuda.set_device(self.device)
                with nullcontext() if self.stream is None else torch.cuda.stream(self.stream):
                    for raw in source():
                        params = AugmentParams()
                        if self.augmentation and raw.keys is not None:
                            params = self.augmentation.draw(raw.epoch, raw.keys, raw.pixels.shape[1])
                        if not put((raw, params) if self.stream is None else self._aside(raw, params, self.stream)):
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

    def _aside(self, raw: Raw, params: AugmentParams, stream: torch.cuda.Stream) -> Batch:
        """Finish a batch on a stream of its own, and wait for it: what it was made from may be overwritten then."""
        if not raw.pixels.is_cuda:
            raw = raw._replace(pixels=raw.pixels.pin_memory(), labels=raw.labels.pin_memory())
        batch = self.finish(raw, params)
        done = torch.cuda.Event(blocking=True)
        done.record(stream)
        done.synchronize()
        return batch

    def _take(self, batch: Batch) -> Batch:
        """Hand over a batch whose memory belongs to the thread's stream: that must not be given out again before the
        consumer's stream is done with it.
        """
        for part in batch:
            if isinstance(part, Tensor):
                part.record_stream(torch.cuda.current_stream(self.device))
        return batch

    def finish(self, raw: Raw, params: AugmentParams) -> Batch:
        """Move a raw batch to the device, augment and normalise it."""
        labels = raw.labels.to(self.device, torch.int64, non_blocking=True)
        pixels = raw.pixels.to(self.device, non_blocking=True)
        if self.augmentation is None and pixels.is_cuda:  # from bytes to the end in one pass
            images = torch.empty_like(pixels.permute(0, 3, 1, 2), dtype=self.dtype, memory_format=self.memory_format)
            return Batch(self._normalise(pixels, images.permute(0, 2, 3, 1)), labels, keys=raw.keys)
        if self.augmentation is None:
            return Batch(self._rounded(self._normalise_on_host(pixels)), labels, keys=raw.keys)
        pixels = pixels.float()
        params = params.to(self.device)
        pixels = self.augmentation.change(pixels, params)
        images = self._rounded(self.augmentation.mix(self._normalise(pixels, pixels), params))
        if params.weights is None:
            return Batch(images, labels, keys=raw.keys)
        return Batch(images, labels, neighbours(labels), params.weights, raw.keys)

    def _normalise(self, pixels: Tensor, out: Tensor) -> Tensor:
        """Normalise [b, H, W, 3] in 0..255 into `out` of that shape; returns it as [b, 3, H, W]."""
        if out.is_contiguous():  # whole rows at once: a loop over three channels would cost more than the arithmetic
            width = pixels.shape[2]
            torch.addcmul(self.shift.repeat(width), pixels.flatten(2), self.scale.repeat(width), out=out.flatten(2))
        else:
            torch.addcmul(self.shift, pixels, self.scale, out=out)
        return out.permute(0, 3, 1, 2)

    def _normalise_on_host(self, pixels: Tensor) -> Tensor:
        """Normalise bytes [b, H, W, 3]; returns floats [b, 3, H, W]. A few images at a time: they stay in the cache."""
        images = self.buffers.take(*pixels.shape)
        few = max(1, CACHED // pixels[0].numel())
        for part, out in zip(pixels.split(few), images.split(few), strict=True):
            self._normalise(out.copy_(part), out)
        return images.permute(0, 3, 1, 2)

    def _rounded(self, images: Tensor) -> Tensor:
        """Return [b, 3, H, W] in the net's dtype and memory format: a copy, or none if they are in both already."""
        return images.to(self.dtype, memory_format=self.memory_format)
