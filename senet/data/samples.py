"""The numbered batches of one split of an image folder: what a backend has to decode, cut and resize."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from senet.config import Data
from senet.data.draws import Ints
from senet.data.folder import Folder
from senet.data.order import Order
from senet.data.pixels import Cut, random_cut, val_corner, val_size


@dataclass(frozen=True)
class Samples:
    """Batch `number`, counted from the start of the run, is a pure function of it; validation begins again after its last."""

    folder: Folder
    data: Data
    order: Order | None  # training
    dealt: tuple[Ints, ...] = ()  # validation: this rank's batches

    @property
    def largest(self) -> int:
        """Images in a batch, at most."""
        return self.order.at_once if self.order else max((len(part) for part in self.dealt), default=0)

    def indices(self, number: int) -> Ints:
        return self.order.indices(*self.order.place(number)) if self.order else self.dealt[number % len(self.dealt)]

    def without(self, number: int, bad: Callable[[str], bool]) -> Ints:
        """The images of a batch but those that cannot be decoded."""
        indices = self.indices(number)
        return indices[[not bad(self.folder.paths[i]) for i in indices]] if len(indices) else indices

    def random_cut(self, number: int, images: Ints, sizes: Ints) -> Cut:
        assert self.order is not None
        return random_cut(self.data, self.order.seed, self.order.place(number)[0], images, sizes)

    def centre_cut(self, sizes: Ints) -> tuple[Ints, Ints]:
        """[b, 2] sizes to resize validation images of `sizes` to, and [b, 2] corners of their crops, as (y, x)."""
        resized = [val_size(self.data, int(h), int(w)) for h, w in sizes]
        return np.array(resized, np.int64), np.array([val_corner(self.data, *size) for size in resized], np.int64)
