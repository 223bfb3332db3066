"""Which images are in which batch: a pure function of (seed, epoch, position), the same on any number of ranks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from senet.data.draws import Ints, permutation
from senet.errors import UsageError


@dataclass(frozen=True)
class Order:
    """Training batches: each epoch is one permutation of all images, cut into global batches; what is left over waits for the next.

    A rank takes a contiguous part of each global batch, in pieces of `at_once` images.
    """

    images: int
    batch: int
    at_once: int
    seed: int
    rank: int
    world: int

    def __post_init__(self) -> None:
        if self.images < self.batch:
            raise UsageError(f"batch: {self.batch} is larger than the training set ({self.images} images); set batch to at most that")

    @property
    def steps(self) -> int:
        return self.images // self.batch

    @property
    def micro_batches(self) -> int:
        return self.batch // self.world // self.at_once

    def indices(self, epoch: int, micro: int) -> Ints:
        """The images of this rank's micro-batch number `micro` of an epoch."""
        step, part = divmod(micro, self.micro_batches)
        start = step * self.batch + self.rank * (self.batch // self.world) + part * self.at_once
        return _epoch(self.seed, epoch, self.images)[start : start + self.at_once]

    def place(self, number: int) -> tuple[int, int]:
        """(epoch, micro) of micro-batch `number` counted from the start of the run."""
        return divmod(number, self.steps * self.micro_batches)


@lru_cache(maxsize=4)
def _epoch(seed: int, epoch: int, images: int) -> Ints:
    return permutation(seed, epoch, images)


def val_batches(images: int, size: int, rank: int, world: int) -> list[Ints]:
    """This rank's part of the validation: the batches are the same whatever the world, dealt out in turn."""
    batches = [np.arange(start, min(start + size, images)) for start in range(0, images, size)]
    return batches[rank::world]
