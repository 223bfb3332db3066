"""Images whose pixels are stored as they are (PPM in shards), and others decoded by PIL.

A crop is a view of the mapped file, resized into the batch. A mapped file that is cut while it is read, or cannot be
read any more, ends the process (SIGBUS).
"""

from __future__ import annotations

import mmap
import os
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from senet.data.loader import BadImages, Raw
from senet.data.philox import Ints
from senet.data.pixels import decode, head
from senet.data.policy import Operations
from senet.data.resize import Buffers, Pixels, Resize
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
        assert isinstance(samples.index.storage, Archives)
        self.storage = samples.index.storage
        self.resize = Resize(samples.data.interpolation)
        self.operations = Operations(samples.data.augment.policy)
        self.threads = ThreadPoolExecutor(workers, thread_name_prefix="pixels")
        self.ahead = 1 + -(-workers * PART // samples.sampler.largest)  # batches that keep all threads busy
        self.buffers = Buffers(pinned=device.type == "cuda")
        self.maps: dict[int, Tensor] = {}  # files by their number

    @property
    def description(self) -> dict[str, Any]:
        return {"backend": "decoded", "resize": "torch", "antialias": True, "orientation": "as stored"}

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
        failures: Failures = {}
        found: list[tuple[int, Pixels]] = []
        for row, key in enumerate(keys.tolist()):
            try:
                found.append((row, self._stored(key)))
            except (OSError, ValueError, SyntaxError) as error:
                failures[rows.start + row] = str(error) or type(error).__name__
        if found:
            rows_found, images = zip(*found, strict=True)
            targets = pixels.permute(0, 3, 1, 2).split(1)
            self._resize(number, keys[list(rows_found)], images, [targets[row] for row in rows_found])
        return failures

    def _stored(self, key: int) -> Pixels:
        """Return an image, decoded if it has to be. Raises ValueError, OSError or SyntaxError if it cannot be."""
        image = key & NUMBER
        height, width = self.storage.columns["shapes"][image].tolist()
        if height:
            number, start, size = self.storage.columns["spans"][image].tolist()
            memory = self.maps.get(number)
            if memory is None:
                with self.samples.reading(key):
                    memory = self.maps[number] = _mapped(self.storage.files[number])
            if len(memory) < start + size:
                raise ValueError(f"the archive ends before its {size} bytes")
            return Pixels(memory, start + size - 3 * height * width, height, width)
        content = self.samples.read(key)
        head(content)  # says why not, if it cannot be decoded
        return Pixels.of(torch.from_numpy(np.array(decode(content))))

    def _resize(self, number: int, keys: Ints, images: Sequence[Pixels], targets: list[Tensor]) -> None:
        """Crop, flip and resize `images` into `targets`, each [1, 3, crop, crop] and channels_last."""
        sizes = np.array([image[2:] for image in images], np.int64)
        operations = self.samples.choose(number, keys)
        if self.samples.training:
            taken = self.samples.random_crop(number, keys, sizes)
            for image, box, flip, out in zip(images, taken.boxes.tolist(), taken.flips.tolist(), targets, strict=True):
                self.resize.crop(image, box, flip, out)
        else:
            resized, corners = (part.tolist() for part in self.samples.centre_crop(sizes))
            for image, size, corner, out in zip(images, resized, corners, targets, strict=True):
                self.resize.centre(image, size, corner, out)
        if operations is not None:
            for row, out in enumerate(targets):
                picture = out[0].permute(1, 2, 0)
                changed = self.operations(Image.fromarray(picture.numpy()), operations, row)
                picture.copy_(torch.from_numpy(np.array(changed)))


def _mapped(path: str) -> Tensor:
    """Return a file as bytes in memory. Raises OSError."""
    file = os.open(path, os.O_RDONLY)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that nobody must write to it
            return torch.frombuffer(mmap.mmap(file, 0, prot=mmap.PROT_READ), dtype=torch.uint8)
    finally:
        os.close(file)
