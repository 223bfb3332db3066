"""Which images are in which batch: a pure function of (seed, epoch, position), the same on any number of ranks.

An entry of a batch is a key: the image's number, and above its 32 bits which copy of it, where an epoch shows an image
several times. Everything random about an entry is drawn from its key, so copies differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from senet.data.philox import Ints, Purpose, permutation, random_keys, uniforms
from senet.errors import UsageError

NUMBER = (1 << 32) - 1  # the bits of a key that tell the image


@dataclass(frozen=True, eq=False)
class Order:
    """Training batches: each epoch is one permutation of all images, cut into global batches; what is left over waits
    for the next.

    A rank takes a contiguous part of each global batch, in pieces of `micro_batch` images. With `repeats` each batch
    holds so many copies of fewer images (Hoffer et al. 2020; an epoch stays as long). With `balance`, the labels
    [images], classes take turns.
    """

    images: int
    batch: int
    micro_batch: int
    seed: int
    rank: int
    world: int
    repeats: int = 1
    balance: Ints | None = None

    def __post_init__(self) -> None:
        if self.images < self.batch:
            raise UsageError(
                f"batch: {self.batch} is larger than the training set ({self.images} images); set batch to at most that"
            )

    @property
    def steps(self) -> int:
        return self.images // self.batch

    @property
    def accumulation_steps(self) -> int:
        return self.batch // self.world // self.micro_batch

    def keys(self, epoch: int, micro: int) -> Ints:
        """[micro_batch] keys of this rank's micro-batch number `micro` of an epoch."""
        step, part = divmod(micro, self.accumulation_steps)
        start = self.rank * (self.batch // self.world) + part * self.micro_batch
        places = np.arange(start, start + self.micro_batch)
        different = self.batch // self.repeats
        return _epoch(self, epoch)[step * different + places % different] + (places // different << 32)

    def place(self, number: int) -> tuple[int, int]:
        """(epoch, micro) of micro-batch `number` counted from the start of the run."""
        return divmod(number, self.steps * self.accumulation_steps)

    def replacements(self, epoch: int, keys: Ints, attempt: int) -> Ints:
        """What stands in for images that cannot be decoded: any others, the same whoever asks."""
        return (uniforms(self.seed, epoch, keys, attempt + 1, Purpose.REPLACE)[:, attempt] * self.images).astype(
            np.int64
        )


@lru_cache(maxsize=4)
def _epoch(order: Order, epoch: int) -> Ints:
    """[images] keys of an epoch."""
    shuffled = permutation(order.seed, epoch, order.images)
    return shuffled if order.balance is None else _take_turns(order, epoch, shuffled, order.balance)


def _take_turns(order: Order, epoch: int, shuffled: Ints, labels: Ints) -> Ints:
    """In each round every class that has images gives one of its own; one that has given all begins again, with its
    second copies.
    """
    grouped = shuffled[np.argsort(labels[shuffled], kind="stable")]
    counts = np.bincount(labels)
    counts = counts[counts > 0]
    rounds = -(-order.images // len(counts))
    keys = random_keys(order.seed, epoch, rounds * len(counts), Purpose.BALANCE).reshape(rounds, len(counts))
    turn = keys.argsort(axis=1, kind="stable")
    copy, member = np.divmod(np.arange(rounds)[:, None], counts[turn])
    starts = np.cumsum(counts) - counts
    return (grouped[starts[turn] + member] + (copy << 32)).reshape(-1)[: order.images]


def val_batches(images: int, size: int, rank: int, world: int) -> list[Ints]:
    """This rank's part of the validation: the batches are the same whatever the world, dealt out in turn."""
    batches = [np.arange(start, min(start + size, images)) for start in range(0, images, size)]
    return batches[rank::world]
