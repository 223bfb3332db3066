"""Image files decoded by PIL, as torchvision does it, in torch's DataLoader: the backend if there is no DALI."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset, get_worker_info

from senet.data.loader import BadImages, Raw
from senet.data.philox import Ints
from senet.data.pixels import Head, decode, head
from senet.data.policy import Operations
from senet.data.resize import Resize, planes
from senet.data.samples import Samples
from senet.errors import RunError
from senet.system.processes import end_with_parent, fork_server

T = TypeVar("T")
Picture = NDArray[np.uint8]  # [crop, crop, 3]
Made = tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, str]]  # pixels, labels, keys, undecodable


class Batches(Dataset[Made]):
    """Item `number` is a whole batch, made in one worker: pixels, labels, and what could not be decoded."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples
        self.operations = Operations(samples.data.augment.policy)
        self.bad: dict[str, str] = {}  # what this worker met, path -> reason

    def __getitem__(self, number: int) -> Made:
        known = len(self.bad)
        keys, images = self.samples.fill(number, lambda keys: self._load(number, keys), self.bad)
        crop = self.samples.crop(number)
        pixels = torch.empty((len(keys), crop, crop, 3), dtype=torch.uint8)
        if get_worker_info() is not None:
            pixels.share_memory_()  # made where the trainer reads it, not copied there
        for target, image in zip(pixels.numpy(), images, strict=True):
            target[:] = image
        new = dict(list(self.bad.items())[known:])
        return pixels, torch.from_numpy(self.samples.labels(keys)), torch.from_numpy(keys), new

    def _load(self, number: int, keys: Ints) -> list[Picture | None]:
        """Make images one after the other, so that no more than one large one is open."""
        files = [self._try(key, self._read, key) for key in keys]
        good = [position for position, file in enumerate(files) if file is not None]
        sizes = np.array([file[1][:2] for file in files if file is not None], np.int64).reshape(-1, 2)
        finish = self._finisher(number, keys[good], sizes)
        images: list[Picture | None] = [None] * len(keys)
        for row, position in enumerate(good):
            content = files[position][0]  # type: ignore[index]
            images[position] = self._try(keys[position], lambda row, file: finish(row, decode(file)), row, content)
        return images

    def _read(self, key: int) -> tuple[bytes, Head]:
        content = self.samples.read(key)
        return content, head(content)

    def _try(self, key: int, act: Callable[..., T], *arguments: Any) -> T | None:
        path = self.samples.path(key)
        if path not in self.bad:
            try:
                return act(*arguments)
            except (OSError, ValueError, SyntaxError) as error:
                self.bad[path] = str(error) or type(error).__name__
        return None

    def _finisher(self, number: int, keys: Ints, sizes: Ints) -> Callable[[int, Image.Image], Picture]:
        """Return what makes the image in a row of `keys` [b] and `sizes` [b, 2] into one of the batch."""
        crop, resize = self.samples.crop(number), Resize(self.samples.data.interpolation)

        def blank() -> torch.Tensor:
            return torch.empty((1, 3, crop, crop), dtype=torch.uint8, memory_format=torch.channels_last)

        if not self.samples.training:
            resized, corners = (part.tolist() for part in self.samples.centre_crop(sizes))

            def centre(row: int, image: Image.Image) -> Picture:
                resize.centre(planes(torch.from_numpy(np.array(image))), resized[row], corners[row], out := blank())
                return _picture(out)

            return centre
        taken, choice = self.samples.random_crop(number, keys, sizes), self.samples.choose(number, keys)

        def random(row: int, image: Image.Image) -> Picture:
            y, x, h, w = taken.boxes[row].tolist()
            part = torch.from_numpy(np.array(image.crop((x, y, x + w, y + h))))
            resize.crop(planes(part), bool(taken.flips[row]), out := blank())
            picture = _picture(out)
            if choice is None:
                return picture
            return np.asarray(self.operations(Image.fromarray(picture), choice, row))

        return random


def _picture(out: torch.Tensor) -> Picture:
    """Return an image [1, 3, H, W], channels_last, as [H, W, 3]. Copies nothing."""
    return out[0].permute(1, 2, 0).numpy()


class Pillow:
    """Batches of `samples` from any number on, made by `workers` processes. `bad` collects what cannot be decoded."""

    def __init__(self, samples: Samples, workers: int, bad: BadImages) -> None:
        self.samples, self.bad = samples, bad
        self.numbers = _Numbers()
        context = fork_server(__name__)
        theirs, self.alive = context.Pipe(duplex=False)
        self.loader = DataLoader(
            Batches(samples),
            batch_size=None,
            sampler=self.numbers,
            num_workers=workers,
            multiprocessing_context=context,
            worker_init_fn=partial(_start, theirs),
            persistent_workers=True,
            # otherwise it draws from the one that the net's dropout uses, at a moment of its own
            generator=torch.Generator(),
        )

    @property
    def description(self) -> dict[str, Any]:
        return {"backend": "pillow", "resize": "torch", "antialias": True, "orientation": "as stored"}

    def batches(self, first: int, count: int) -> Iterator[Raw]:
        """Yield batches `first` to `first + count - 1`, but those of a validation that are empty."""
        self.numbers.wanted = range(first, first + count)
        made = iter(self.loader)
        for number in self.numbers.wanted:
            try:
                pixels, labels, keys, bad = next(made)
            except RunError as error:  # torch adds where in the worker it came from
                raise RunError(str(error).rpartition("RunError: ")[2].strip()) from None
            for path, reason in bad.items():
                self.bad.note(path, reason)
            if len(labels):
                yield Raw(pixels, labels, self.samples.sampler.epoch(number), keys.numpy())

    def close(self) -> None:
        iterator = getattr(self.loader, "_iterator", None)
        if iterator is not None and hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()
        self.alive.close()


class _Numbers(torch.utils.data.Sampler[int]):
    """The batches wanted at the moment: lets one DataLoader, with its workers, serve every epoch."""

    wanted = range(0)

    def __iter__(self) -> Iterator[int]:
        return iter(self.wanted)

    def __len__(self) -> int:
        return len(self.wanted)


def _start(pipe: Connection, worker: int) -> None:
    end_with_parent(pipe)
