"""Sets that fit on the device whole: CIFAR and synthetic images. Cropping and flipping are gathers there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from senet.config import Cifar, Cifar10, Cifar100, Synthetic
from senet.data.loader import Raw
from senet.data.philox import Ints, flips, uniforms
from senet.data.sampler import NUMBER, Sampler, TrainSampler

POOL = 256  # different synthetic images
SEVERAL = 16 << 20  # bytes that are made at once: to ask a device for one small batch takes longer than to make many
Data = Cifar10 | Cifar100 | Synthetic


class InMemory:
    """Batches of a set whose pixels [n, H, W, 3] are on the device. With fewer pixels than labels, images repeat."""

    def __init__(
        self, pixels: NDArray[np.uint8], labels: Ints, data: Data, sampler: Sampler, device: torch.device
    ) -> None:
        self.pixels = torch.from_numpy(pixels).to(device)
        self.labels = torch.from_numpy(labels).to(device)
        self.data, self.sampler, self.device = data, sampler, device

    @property
    def description(self) -> dict[str, Any]:
        return {"backend": "memory", "set": self.data.set}

    def batches(self, first: int, count: int) -> Iterator[Raw]:
        """Yield batches `first` to `first + count - 1`, of which several are made at once."""
        number, end = first, first + count
        while number < end:
            epoch, keys = self.sampler.epoch(number), [self.sampler.keys(number)]
            most = SEVERAL // (keys[0].size * self.pixels[0].nbytes)
            while len(keys) < most and number + len(keys) < end and self.sampler.epoch(number + len(keys)) == epoch:
                keys.append(self.sampler.keys(number + len(keys)))
            yield from map(Raw, *self._make(epoch, keys), [epoch] * len(keys), keys)
            number += len(keys)

    def _make(self, epoch: int, keys: list[Ints]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Return pixels and labels of the batches `keys` of an epoch."""
        every = np.concatenate(keys)
        index = torch.from_numpy(every & NUMBER).to(self.device, non_blocking=True)
        pixels, labels = self.pixels[index % len(self.pixels)], self.labels[index]
        if isinstance(self.sampler, TrainSampler) and isinstance(self.data, Cifar):
            pixels = self._augment(self.data, pixels, self.sampler.seed, epoch, every)
        sizes = [len(part) for part in keys]
        return pixels.split(sizes), labels.split(sizes)

    def close(self) -> None:
        pass

    def _augment(self, data: Cifar, pixels: Tensor, seed: int, epoch: int, keys: Ints) -> Tensor:
        """Add zeros on each side, take a random crop of the old size, flip it at random (section 5.1, CIFAR)."""
        pad, size = data.pad, data.crop
        draws = uniforms(seed, epoch, keys, 3)
        mirrored = torch.from_numpy(flips(data.flip, draws[:, 2], seed, epoch, keys))
        columns = torch.arange(size, device=self.device).expand(len(pixels), size)
        columns = torch.where(mirrored.to(self.device, non_blocking=True)[:, None], columns.flip(1), columns)
        corners = torch.from_numpy((draws[:, :2] * (2 * pad + 1)).astype(np.int64)).to(self.device, non_blocking=True)
        rows = corners[:, :1] + torch.arange(size, device=self.device)
        columns = corners[:, 1:] + columns
        padded = torch.nn.functional.pad(pixels, (0, 0, pad, pad, pad, pad))
        batch = torch.arange(len(pixels), device=self.device)[:, None, None]
        return padded[batch, rows[:, :, None], columns[:, None, :]]


def synthetic(data: Synthetic, images: int, seed: int) -> tuple[NDArray[np.uint8], Ints]:
    """Draw a pool of random pixels, and labels for `images` images that take them in turn: for measuring speed, there
    is nothing to learn.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    pixels = generator.integers(0, 256, (min(images, POOL), data.crop, data.crop, 3), np.uint8)
    return pixels, np.arange(images, dtype=np.int64) * 2654435761 % data.classes
