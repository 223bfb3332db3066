"""Which part of which image becomes a sample: what both backends of image files share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from senet.config import Folder, crop_at
from senet.data.philox import Ints, crops, flips, uniforms
from senet.data.policy import Choice, choose
from senet.data.sampler import NUMBER, Sampler, TrainSampler
from senet.data.storage.index import Index
from senet.errors import RunError

T = TypeVar("T")
ATTEMPTS = 50  # to find an image that can be decoded


@dataclass(frozen=True)
class Crop:
    """For each of b images: the box [b, 4] (y, x, height, width) to take, and whether to flip it [b]."""

    boxes: Ints
    flips: Ints


@dataclass(frozen=True)
class Samples:
    """The batches of image files; batch `number` is a pure function of it."""

    index: Index
    data: Folder
    sampler: Sampler

    @property
    def training(self) -> bool:
        return isinstance(self.sampler, TrainSampler)

    def path(self, key: int) -> str:
        return self.index.storage.path(int(key) & NUMBER)

    def labels(self, keys: Ints) -> Ints:
        return self.index.labels[keys & NUMBER]

    def read(self, key: int) -> bytes:
        """Return the bytes of an image file.

        Raises ValueError if the archive that it is in is damaged. Raises RunError if the file cannot be read: that
        tells nothing about the image, and the next start may read it, so another must not take its place.
        """
        try:
            return self.index.storage.read(int(key) & NUMBER)
        except OSError as error:
            raise self.unreadable(key, error) from None

    def unreadable(self, key: int, error: OSError) -> RunError:
        """Return what to raise if the file of an image cannot be read."""
        return RunError(f"{self.path(key)}: cannot be read: {error.strerror or error}; mend that and start again")

    def fill(
        self, number: int, load: Callable[[Ints], Sequence[T | None]], reasons: Mapping[str, str]
    ) -> tuple[Ints, list[T]]:
        """Return the keys of a batch and what `load` made of them: None for images that cannot be decoded, for
        `reasons` by path.

        Those are left out of a validation. In training others take their places, so that no batch is shorter than the
        schedule says; which ones depends on (seed, epoch, key) alone, and so does the whole batch, whoever meets it and
        when. Raises RunError if none of many others can be decoded either.
        """
        keys = self.sampler.keys(number)
        loaded = list(load(keys))
        if not isinstance(self.sampler, TrainSampler):
            return keys[[item is not None for item in loaded]], [item for item in loaded if item is not None]
        wanted, keys = keys, keys.copy()
        for attempt in range(ATTEMPTS):
            empty = [position for position, item in enumerate(loaded) if item is None]
            if not empty:
                return keys, [item for item in loaded if item is not None]
            keys[empty] = self.sampler.replacements(number, wanted[empty], attempt)
            for position, item in zip(empty, load(keys[empty]), strict=True):
                loaded[position] = item
        path = self.path(keys[empty[-1]])
        raise RunError(
            f"{ATTEMPTS} images in a row cannot be decoded, the last one {path}: {reasons.get(path, 'as before')}; "
            "mend the data, or list all such images: python -m launch.prepare audit DIR"
        )

    def crop(self, number: int) -> int:
        """Return the side of the images of a batch, in pixels."""
        return crop_at(self.data, self.sampler.epoch(number)) if self.training else self.data.crop

    def choose(self, number: int, keys: Ints) -> Choice | None:
        """Return the operations of an augmentation policy, if there is one."""
        policy = self.data.augment.policy
        if not isinstance(self.sampler, TrainSampler) or policy is None:
            return None
        return choose(policy, self.sampler.seed, self.sampler.epoch(number), keys)

    def random_crop(self, number: int, keys: Ints, sizes: Ints) -> Crop:
        """Return the paper's random crop and flip (section 5.1) of images of `sizes` [b, 2] (height, width)."""
        assert isinstance(self.sampler, TrainSampler)
        draws = uniforms(self.sampler.seed, self.sampler.epoch(number), keys, 23)
        boxes = crops(draws, sizes[:, 0], sizes[:, 1], self.data.area, self.data.aspect)
        mirrored = flips(self.data.flip, draws[:, 22], self.sampler.seed, self.sampler.epoch(number), keys)
        return Crop(boxes, mirrored.astype(np.int64))

    def centre_crop(self, sizes: Ints) -> tuple[Ints, Ints]:
        """Return what `centre_crop` does for this data set."""
        return centre_crop(sizes, self.data.resize, self.data.crop)


def centre_crop(sizes: Ints, resize: int, crop: int) -> tuple[Ints, Ints]:
    """Return the sizes [b, 2] to resize validation images of `sizes` to, so that their shorter sides become `resize`,
    and the corners [b, 2] of their centre crops, as (y, x). Both are rounded as torchvision does.
    """
    resized = (resize * sizes / sizes.min(1, keepdims=True)).astype(np.int64)
    return resized, np.rint((resized - crop) / 2).astype(np.int64)
