"""Images whose pixels are stored as they are (PPM in shards), and others decoded by PIL, resized by torch.

A crop is a view of the mapped file; torch's antialiased resize of bytes, which is vectorised and computes as PIL's,
writes it into the batch. A mapped file that is cut, or cannot be read any more, ends the process (SIGBUS).
"""

from __future__ import annotations

import mmap
import os
import warnings
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from senet.data.loader import BadImages, Raw
from senet.data.philox import Ints
from senet.data.pixels import decode, head
from senet.data.policy import Operations
from senet.data.sampler import NUMBER
from senet.data.samples import Samples
from senet.data.storage.archives import Archives

PART = 64  # images that a thread makes in one go: fewer, and drawing their boxes would count
RESIZE = {"bilinear": torch.ops.aten._upsample_bilinear2d_aa, "bicubic": torch.ops.aten._upsample_bicubic2d_aa}
Failures = dict[int, str]  # by row of a batch: why its image cannot be decoded


class Stored(NamedTuple):
    """Pixels [height, width, 3] in memory, uint8, from `start` on."""

    memory: Tensor
    start: int
    height: int
    width: int


class Buffers:
    """Memory for batches on the host, used again when no tensor is in it any more: fresh memory costs a page fault for
    each of its 4 kB, which takes longer than to fill it.
    """

    def __init__(self) -> None:
        self.free: list[NDArray[np.uint8]] = []

    def take(self, *shape: int) -> Tensor:
        """Return a tensor of bytes, of any content."""
        while self.free:
            if (array := self.free.pop()).shape == shape:
                break
        else:
            array = np.empty(shape, np.uint8)
        lent = array.view()  # lives as long as a tensor is in it
        weakref.finalize(lent, self.free.append, array).atexit = False
        return torch.from_numpy(lent)


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
        self.samples, self.bad, self.pinned = samples, bad, device.type == "cuda"
        assert isinstance(samples.index.storage, Archives)
        self.storage = samples.index.storage
        self.resize = RESIZE[samples.data.interpolation]
        self.operations = Operations(samples.data.augment.policy)
        self.threads = ThreadPoolExecutor(workers, thread_name_prefix="pixels")
        self.ahead = 1 + -(-workers * PART // samples.sampler.largest)  # batches that keep all threads busy
        self.buffers = Buffers()
        self.maps: dict[int, Tensor] = {}  # files by their number

    @property
    def description(self) -> dict[str, Any]:
        return {"backend": "decoded", "antialias": True, "orientation": "as stored"}

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
        shape = len(keys), crop, crop, 3
        # torch keeps pinned memory itself.
        pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=True) if self.pinned else self.buffers.take(*shape)
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
        found: list[tuple[int, Stored]] = []
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

    def _stored(self, key: int) -> Stored:
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
            return Stored(memory, start + size - 3 * height * width, height, width)
        content = self.samples.read(key)
        head(content)  # says why not, if it cannot be decoded
        array = np.array(decode(content))
        return Stored(torch.from_numpy(array).view(-1), 0, *array.shape[:2])

    def _resize(self, number: int, keys: Ints, images: Sequence[Stored], targets: list[Tensor]) -> None:
        """Crop, flip and resize `images` into `targets`, each [1, 3, crop, crop] and channels_last."""
        sizes = np.array([image[2:] for image in images], np.int64)
        crop, operations = self.samples.crop(number), self.samples.choose(number, keys)
        if self.samples.training:
            taken = self.samples.random_crop(number, keys, sizes)
            boxes, flips = taken.boxes.tolist(), taken.flips.tolist()
            resized = None
        else:
            boxes, flips = [[0, 0, image.height, image.width] for image in images], [0] * len(images)
            resized, corners = (part.tolist() for part in self.samples.centre_crop(sizes))
        for row, (image, out) in enumerate(zip(images, targets, strict=True)):
            (y, x, h, w), line = boxes[row], 3 * image.width
            view = image.memory.as_strided((1, 3, h, w), (h * line, 1, line, 3), image.start + y * line + 3 * x)
            if flips[row]:
                view = view.flip(3)
            if resized is None:
                self.resize.out(view, [crop, crop], False, None, None, out=out)
            else:
                (down, right), size = corners[row], resized[row]
                whole = view if size == [h, w] else self.resize(view, size, False, None, None)
                out.copy_(whole[:, :, down : down + crop, right : right + crop])
            if operations is not None:
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
