"""Which images are in which batch: a pure function of (seed, epoch, position), the same on any number of ranks.

An entry of a batch is a key: the image's number, and above its 32 bits which copy of it, for an epoch may show an image
several times. Everything random about an entry is drawn from its key, so copies differ. Batches are numbered: those of
a training from the start of the run, those of a validation again and again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from senet.data.philox import Ints, Purpose, permutation, random_keys, uniforms
from senet.errors import UsageError

NUMBER = (1 << 32) - 1  # the bits of a key that tell the image


@dataclass(frozen=True, eq=False)
class TrainSampler:
    """Micro-batches of a training: each epoch is one permutation of all images, cut into global batches; what is left
    over waits for the next.

    A rank takes a contiguous part of each global batch, in pieces of `micro_batch` images. With `repeats` each batch
    holds so many copies of fewer images (Hoffer et al. 2020; an epoch stays as long). With `balance`, the labels
    [images], classes take turns. Raises UsageError if a batch is larger than the set.
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

    @property
    def largest(self) -> int:
        """The images in a batch, at most."""
        return self.micro_batch

    def epoch(self, number: int) -> int:
        """Return the epoch that micro-batch `number` is in."""
        return number // (self.steps * self.accumulation_steps)

    def keys(self, number: int) -> Ints:
        """Return the keys [micro_batch] of this rank's micro-batch `number`."""
        epoch, micro = divmod(number, self.steps * self.accumulation_steps)
        step, part = divmod(micro, self.accumulation_steps)
        start = self.rank * (self.batch // self.world) + part * self.micro_batch
        positions = np.arange(start, start + self.micro_batch)
        different = self.batch // self.repeats
        return _shuffled(self, epoch)[step * different + positions % different] + (positions // different << 32)

    def replacements(self, number: int, keys: Ints, attempt: int) -> Ints:
        """Return keys of what stands in for images that cannot be decoded: any others, the same whoever asks."""
        draws = uniforms(self.seed, self.epoch(number), keys, attempt + 1, Purpose.REPLACE)
        return (draws[:, attempt] * self.images).astype(np.int64)


@lru_cache(maxsize=4)
def _shuffled(sampler: TrainSampler, epoch: int) -> Ints:
    """Return the keys [images] of an epoch."""
    shuffled = permutation(sampler.seed, epoch, sampler.images)
    return shuffled if sampler.balance is None else _take_turns(sampler, epoch, shuffled, sampler.balance)


def _take_turns(sampler: TrainSampler, epoch: int, shuffled: Ints, labels: Ints) -> Ints:
    """Let every class that has images give one of its own in each round; one that has given all begins again, with its
    second copies.
    """
    grouped = shuffled[np.argsort(labels[shuffled], kind="stable")]
    counts = np.bincount(labels)
    counts = counts[counts > 0]
    rounds = -(-sampler.images // len(counts))
    keys = random_keys(sampler.seed, epoch, rounds * len(counts), Purpose.BALANCE).reshape(rounds, len(counts))
    turn = keys.argsort(axis=1, kind="stable")
    copy, member = np.divmod(np.arange(rounds)[:, None], counts[turn])
    starts = np.cumsum(counts) - counts
    return (grouped[starts[turn] + member] + (copy << 32)).reshape(-1)[: sampler.images]


class ValSampler:
    """This rank's batches of a validation, at most `largest` images each: of all, or of those in `only`. They are the
    same whatever the world: ranks take them in turn.
    """

    def __init__(self, images: int, largest: int, rank: int, world: int, only: Ints | None = None) -> None:
        chosen = np.arange(images) if only is None else only
        starts = range(0, len(chosen), largest)[rank::world]
        self.largest, self.batches = largest, [chosen[start : start + largest] for start in starts]

    def epoch(self, number: int) -> int:
        return 0

    def keys(self, number: int) -> Ints:
        """Return the keys [b] of this rank's batch `number`."""
        return self.batches[number % len(self.batches)]


Sampler = TrainSampler | ValSampler
