"""Batches that never end, for measuring: made-up ones again and again, or a loader's epochs one after another."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable

import torch

from senet.data.loader import Batch


class Endless:
    """A training loader whose one epoch has no end. `epoch(n)` gives the micro-batches of the n-th pass, from 0."""

    steps, waited = 1 << 40, 0.0

    def __init__(self, epoch: Callable[[int], Iterable[Batch]], accumulation_steps: int = 1) -> None:
        self.epoch, self.accumulation_steps, self.passes = epoch, accumulation_steps, 0

    @classmethod
    def of(cls, *micro: Batch) -> Endless:
        """Give the same micro-batches in each step: what is left is the net and the loop."""
        return cls(lambda number: micro, len(micro))

    def batches(self, epoch: int = 0, step: int = 0) -> Generator[Batch, None, None]:
        """Go on with the pass after the last one begun, whatever the arguments: passes are the only order there is."""
        while True:
            self.passes += 1
            yield from self.epoch(self.passes - 1)


def noise(
    images: int,
    crop: int,
    classes: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    layout: torch.memory_format = torch.channels_last,
) -> Batch:
    """Draw a batch of `images` x 3 x `crop` x `crop` normal numbers, rounded to `dtype`, the same on any device."""
    pixels = torch.randn(images, 3, crop, crop, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(images) % classes
    return Batch(pixels.to(device, dtype).contiguous(memory_format=layout), labels.to(device))
