"""Which part of which image becomes a sample: what both backends of image folders share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from senet.config import Folder, crop_at
from senet.data.philox import Ints
from senet.data.pixels import Cut, random_cut, val_corner, val_size
from senet.data.policy import Choice, choose
from senet.data.sampler import NUMBER, Order
from senet.data.storage.index import Index
from senet.errors import RunError

T = TypeVar("T")
ATTEMPTS = 50  # to find an image that can be decoded


@dataclass(frozen=True)
class Samples:
    """Batch `number`, counted from the start of the run, is a pure function of it; validation begins again after its
    last.
    """

    index: Index
    data: Folder
    order: Order | None  # training
    dealt: tuple[Ints, ...] = ()  # validation: this rank's batches

    @property
    def largest(self) -> int:
        """Images in a batch, at most."""
        return self.order.micro_batch if self.order else max((len(part) for part in self.dealt), default=0)

    def keys(self, number: int) -> Ints:
        return self.order.keys(*self.order.place(number)) if self.order else self.dealt[number % len(self.dealt)]

    def names(self, number: int) -> list[str]:
        """Of a batch, its images' paths."""
        return [self.path(key) for key in self.keys(number)]

    def fill(self, number: int, load: Callable[[Ints], Sequence[T | None]]) -> tuple[Ints, list[T]]:
        """The keys of a batch and what `load` made of them, None for images that it cannot decode.

        Those are left out of a validation. In training others take their places, so that no batch is shorter than the
        schedule says; which ones depends on (seed, epoch, key) alone, and so does the whole batch, whoever meets it and
        when.
        """
        keys = self.keys(number)
        loaded = list(load(keys))
        if self.order is None:
            return keys[[item is not None for item in loaded]], [item for item in loaded if item is not None]
        wanted = keys.copy()
        for attempt in range(ATTEMPTS):
            empty = [place for place, item in enumerate(loaded) if item is None]
            if not empty:
                break
            keys[empty] = self.order.replacements(self.epoch(number), wanted[empty], attempt)
            for place, item in zip(empty, load(keys[empty]), strict=True):
                loaded[place] = item
        full = [item for item in loaded if item is not None]
        if len(full) < len(keys):
            raise RunError(
                f"{ATTEMPTS} images in a row cannot be decoded, the last one "
                f"{self.path(keys[empty[0]])}; check the data"
            )
        return keys, full

    def path(self, key: int) -> str:
        return self.index.storage.path(int(key) & NUMBER)

    def labels(self, keys: Ints) -> Ints:
        return self.index.labels[keys & NUMBER]

    def epoch(self, number: int) -> int:
        return self.order.place(number)[0] if self.order else 0

    def crop(self, number: int) -> int:
        """The side of the images of a batch."""
        return crop_at(self.data, self.epoch(number)) if self.order else self.data.crop

    def choose(self, number: int, keys: Ints) -> Choice | None:
        """The operations of an augmentation policy, if there is one."""
        policy = self.data.augment.policy
        if self.order is None or policy is None:
            return None
        return choose(policy, self.order.seed, self.epoch(number), keys)

    def random_cut(self, number: int, keys: Ints, sizes: Ints) -> Cut:
        assert self.order is not None
        return random_cut(self.data, self.order.seed, self.epoch(number), keys, sizes)

    def centre_cut(self, sizes: Ints) -> tuple[Ints, Ints]:
        """[b, 2] sizes to resize validation images of `sizes` to, and [b, 2] corners of their crops, as (y, x)."""
        resized = [val_size(self.data, int(h), int(w)) for h, w in sizes]
        corners = [val_corner(self.data, *size) for size in resized]
        return np.array(resized, np.int64).reshape(-1, 2), np.array(corners, np.int64).reshape(-1, 2)
