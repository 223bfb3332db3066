"""Image folders and shards through PIL and torch's DataLoader, as torchvision decodes them: the second backend, where
there is no DALI.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, get_worker_info

from senet.data.loader import BadImages, Raw
from senet.data.philox import Ints
from senet.data.pixels import decode, size
from senet.data.policy import Operations
from senet.data.sampler import NUMBER
from senet.data.samples import Samples
from senet.errors import RunError
from senet.system.processes import end_with_parent, fork_server

T = TypeVar("T")
Made = tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[tuple[str, str]]]  # pixels, labels, keys, undecodable


class Batches(Dataset[Made]):
    """Item `number` is a whole batch, made in one worker: pixels, labels, and what could not be decoded."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples
        self.operations = Operations(samples.data.augment.policy)
        self.known: set[str] = set()  # undecodable, as far as this worker knows
        self.found: dict[str, str] = {}  # in the current batch: path -> reason

    def __getitem__(self, number: int) -> Made:
        self.found.clear()
        keys, images = self.samples.fill(number, lambda keys: self._load(number, keys))
        crop = self.samples.crop(number)
        pixels = torch.empty((len(keys), crop, crop, 3), dtype=torch.uint8)
        if get_worker_info() is not None:
            pixels.share_memory_()  # made where the trainer reads it, not copied there
        for target, image in zip(pixels.numpy(), images, strict=True):
            target[:] = np.asarray(image)
        return pixels, torch.from_numpy(self.samples.labels(keys)), torch.from_numpy(keys), list(self.found.items())

    def _load(self, number: int, keys: Ints) -> list[Image.Image | None]:
        """One after the other, so that no more than one large image is open."""
        files = [self._try(int(key), self._read, int(key)) for key in keys]
        good = np.array([file is not None for file in files], bool)
        finish = self._finisher(
            number, keys[good], np.array([file[1] for file in files if file], np.int64).reshape(-1, 2)
        )
        places = np.cumsum(good) - 1
        return [
            None
            if file is None
            else self._try(int(key), lambda content, place: finish(place, decode(content)), file[0], int(place))
            for key, file, place in zip(keys, files, places, strict=True)
        ]

    def _read(self, key: int) -> tuple[bytes, tuple[int, int]]:
        content = self.samples.index.storage.read(key & NUMBER)
        return content, size(content)

    def _try(self, key: int, act: Callable[..., T], *arguments: Any) -> T | None:
        path = self.samples.path(key)
        if path not in self.known:
            try:
                return act(*arguments)
            except (OSError, ValueError, SyntaxError) as error:
                self.known.add(path)
                self.found[path] = str(error) or type(error).__name__
        return None

    def _finisher(self, number: int, keys: Ints, sizes: Ints) -> Callable[[int, Image.Image], Image.Image]:
        """What makes the image at a place, of `sizes` [b, 2], into one of the batch."""
        crop = self.samples.crop(number)
        if self.samples.order is None:
            resized, corners = self.samples.centre_cut(sizes)

            def centre(place: int, image: Image.Image) -> Image.Image:
                (h, w), (y, x) = resized[place], corners[place]
                return image.resize((w, h), Image.Resampling.BILINEAR).crop((x, y, x + crop, y + crop))

            return centre
        cut, choice = self.samples.random_cut(number, keys, sizes), self.samples.choose(number, keys)

        def random(place: int, image: Image.Image) -> Image.Image:
            y, x, h, w = cut.boxes[place]
            # Crop first: PIL's resize with a box would let pixels outside it bleed in.
            image = image.crop((x, y, x + w, y + h)).resize((crop, crop), Image.Resampling.BILINEAR)
            if cut.flips[place]:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            return image if choice is None else self.operations(image, choice, place)

        return random


class Pillow:
    """Batches of `samples` from any number on. `bad` collects what cannot be decoded."""

    def __init__(self, samples: Samples, workers: int, bad: BadImages) -> None:
        self.samples = samples
        self.numbers = range(0)
        self.bad = bad
        context = fork_server(__name__) if workers else None
        pipe: Any = context.Pipe(duplex=False) if context else (None, None)
        theirs, self.alive = pipe
        self.loader = DataLoader(
            Batches(samples),
            batch_size=None,
            sampler=_Numbers(self),
            num_workers=workers,
            multiprocessing_context=context,
            worker_init_fn=partial(_start, theirs),
            persistent_workers=workers > 0,
            # else it draws from the one that the net's dropout uses, at a moment of its own
            generator=torch.Generator(),
        )

    @property
    def description(self) -> dict[str, Any]:
        return {"backend": "pillow", "interpolation": "bilinear", "antialias": True, "orientation": "as stored"}

    def batches(self, first: int, count: int) -> Iterator[Raw]:
        """Batches `first` to `first + count - 1`."""
        self.numbers = range(first, first + count)
        made = iter(self.loader)
        for number in self.numbers:
            try:
                pixels, labels, keys, found = next(made)
            except RunError as error:  # torch adds where in the worker it came from
                raise RunError(str(error).rpartition("RunError: ")[2].strip()) from None
            for path, reason in found:
                self.bad.note(path, reason)
            if len(labels):  # a validation may have lost all of a batch
                yield Raw(pixels, labels, self.samples.epoch(number), keys.numpy())

    def names(self, number: int) -> list[str]:
        return self.samples.names(number)

    def close(self) -> None:
        iterator = getattr(self.loader, "_iterator", None)
        if iterator is not None and hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()
        if self.alive is not None:
            self.alive.close()


def _start(pipe: Connection | None, worker: int) -> None:
    if pipe is not None:
        end_with_parent(pipe)


class _Numbers(torch.utils.data.Sampler[int]):
    """The batches asked for at the moment: lets one DataLoader, with its workers, serve every epoch."""

    def __init__(self, pillow: Pillow) -> None:
        self.pillow = pillow

    def __iter__(self) -> Iterator[int]:
        return iter(self.pillow.numbers)

    def __len__(self) -> int:
        return len(self.pillow.numbers)
