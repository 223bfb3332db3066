"""Images whose pixels are stored as they are (PPM in shards), and others decoded by PIL.

A crop is a view of the mapped file, resized into the batch. Before each, it is looked up that the file is still as long
as its list says: an image that has been cut off is damaged like any other. Only a file that is cut, or that a network
file system loses, in the 20 microseconds after that ends the process, by SIGBUS. To read images instead of mapping them
would make all of them a seventh dearer.
"""

from __future__ import annotations

import mmap
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from senet.data.cache import Cached
from senet.data.loader import BadImages, Raw
from senet.data.philox import Ints
from senet.data.pixels import decode, head
from senet.data.policy import Operations
from senet.data.resize import Buffers, Resize
from senet.data.sampler import NUMBER
from senet.data.samples import Samples
from senet.data.storage.archives import Archives

PART = 64  # images that a thread makes in one go: fewer, and drawing their boxes would count
Failures = dict[int, str]  # by row of a batch: why its image cannot be decoded


class Making(NamedTuple):
    """A batch that threads work on."""

    keys: Ints
    pixels: Tensor
    parts: list[Future[Failures]]

    def failures(self) -> Failures:
        """Wait for the batch."""
        return {row: reason for part in self.parts for row, reason in part.result().items()}


class Decoded:
    """Batches of `samples` from any number on, made by threads. `bad` collects what cannot be decoded."""

    def __init__(self, samples: Samples, device: torch.device, workers: int, bad: BadImages) -> None:
        self.samples, self.bad = samples, bad
        storage = samples.index.storage
        assert isinstance(storage, Archives | Cached)
        self.files, self.spans, self.shapes = storage.files, storage.columns["spans"], storage.columns["shapes"]
        self.maps: dict[int, tuple[mmap.mmap, Tensor]] = {}  # files by their number
        self.resize = Resize(samples.data.interpolation)
        self.operations = Operations(samples.data.augment.policy)
        self.threads = ThreadPoolExecutor(workers, thread_name_prefix="pixels")
        self.ahead = -(-workers * PART // samples.sampler.largest)  # batches that keep all threads busy
        self.buffers = Buffers(pinned=device.type == "cuda")

    @property
    def description(self) -> dict[str, Any]:
        backend = "pillow" if isinstance(self.samples.index.storage, Cached) else "decoded"  # which decoded them
        return {"backend": backend, "resize": "torch", "antialias": True, "orientation": "as stored"}

    def batches(self, first: int, count: int) -> Iterator[Raw]:
        """Yield batches `first` to `first + count - 1`, but those of a validation that are empty."""
        begun: deque[Making] = deque()
        for number in range(first, first + count):
            while len(begun) <= self.ahead and number + len(begun) < first + count:
                later = number + len(begun)
                begun.append(self._begin(later, self.samples.sampler.keys(later)))
            keys, pixels = self._finish(number, begun.popleft())
            if len(keys):
                labels = torch.from_numpy(self.samples.labels(keys))
                yield Raw(pixels, labels, self.samples.sampler.epoch(number), keys)

    def close(self) -> None:
        self.threads.shutdown(cancel_futures=True)
        self.maps.clear()

    def _begin(self, number: int, keys: Ints) -> Making:
        crop = self.samples.crop(number)
        pixels = self.buffers.take(len(keys), crop, crop, 3)
        parts = (slice(start, start + PART) for start in range(0, len(keys), PART))
        return Making(
            keys, pixels, [self.threads.submit(self._make, number, keys[part], pixels[part], part) for part in parts]
        )

    def _finish(self, number: int, begun: Making) -> tuple[Ints, Tensor]:
        """Return the keys of a batch and its pixels, with others in place of those that cannot be decoded."""
        if not begun.failures():
            return begun.keys, begun.pixels
        waiting = [begun]

        def load(keys: Ints) -> list[Tensor | None]:
            made = waiting.pop() if waiting else self._begin(number, keys)
            failures = made.failures()
            for row, reason in failures.items():
                self.bad.note(self.samples.path(keys[row]), reason)
            return [None if row in failures else image for row, image in enumerate(made.pixels)]

        keys, images = self.samples.fill(number, load, self.bad)
        return keys, torch.stack(images) if images else begun.pixels[:0]

    def _make(self, number: int, keys: Ints, pixels: Tensor, rows: slice) -> Failures:
        """Make the images `keys` of a batch. Raises RunError for a file that cannot be read."""
        reasons: dict[int, str] = {}
        files: dict[int, bytes] = {}  # by row: what is to be decoded
        sizes, spans = self.shapes[keys & NUMBER].astype(np.int64), self.spans[keys & NUMBER].tolist()
        for row in np.flatnonzero(sizes[:, 0] == 0).tolist():
            sizes[row] = 1  # if it has none
            try:
                files[row] = content = self.samples.read(keys[row])
                sizes[row] = head(content)[:2]
            except (OSError, ValueError, SyntaxError) as error:
                reasons[row] = str(error) or type(error).__name__
        boxes, finish = self._finisher(number, keys, sizes)
        targets = pixels.permute(0, 3, 1, 2).split(1)
        places = zip(keys.tolist(), boxes.tolist(), sizes.tolist(), strict=True)
        for row, (key, (y, x, h, w), (height, width)) in enumerate(places):
            if row in reasons:
                continue
            try:
                if row in files:
                    memory = torch.from_numpy(np.array(decode(files[row])))
                    end = memory.numel()
                else:
                    memory, end = self._stored(key, *spans[row])
            except (OSError, ValueError, SyntaxError) as error:
                reasons[row] = str(error) or type(error).__name__
                continue
            line = 3 * width
            first = end - (height - y) * line + 3 * x
            finish(row, memory.as_strided((1, 3, h, w), (h * line, 1, line, 3), first), targets[row])
        return {rows.start + row: reason for row, reason in reasons.items()}

    def _stored(self, key: int, number: int, start: int, size: int) -> tuple[Tensor, int]:
        """Return the bytes of a file, and where the image that is in the `size` from `start` on ends.

        Raises ValueError if the file ends before, RunError if it cannot be read.
        """
        try:
            if number not in self.maps:
                self.maps[number] = _mapped(self.files[number])
            file, memory = self.maps[number]
            if file.size() < start + size:
                raise ValueError(f"the archive ends before its {size} bytes")
        except OSError as error:
            raise self.samples.unreadable(key, error) from None
        return memory, start + size

    def _finisher(self, number: int, keys: Ints, sizes: Ints) -> tuple[Ints, Callable[[int, Tensor, Tensor], None]]:
        """Return the boxes [b, 4] (y, x, height, width) to take from images of `sizes` [b, 2], and what makes the box
        [1, 3, h, w] of a row into its image [1, 3, crop, crop], channels_last.
        """
        if not self.samples.training:
            resized, corners = (part.tolist() for part in self.samples.centre_crop(sizes))
            whole = np.concatenate([np.zeros_like(sizes), sizes], 1)
            return whole, lambda row, part, out: self.resize.centre(part, resized[row], corners[row], out)
        taken, choice = self.samples.random_crop(number, keys, sizes), self.samples.choose(number, keys)
        flips = taken.flips.tolist()

        def random(row: int, part: Tensor, out: Tensor) -> None:
            self.resize.crop(part, flips[row], out)
            if choice is not None:
                picture = out[0].permute(1, 2, 0)
                changed = self.operations(Image.fromarray(picture.numpy()), choice, row)
                picture.copy_(torch.from_numpy(np.array(changed)))

        return taken.boxes, random


def _mapped(path: str) -> tuple[mmap.mmap, Tensor]:
    """Return a file, and what it holds as bytes in memory. Raises OSError."""
    number = os.open(path, os.O_RDONLY)
    try:
        file = mmap.mmap(number, 0, prot=mmap.PROT_READ)
    finally:
        os.close(number)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nobody must write to it
        return file, torch.frombuffer(file, dtype=torch.uint8)
