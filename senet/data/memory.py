"""Sets that fit on the device whole: CIFAR and synthetic images. Cropping and flipping are gathers there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from senet.config import Cifar, Data, Synthetic
from senet.data.loader import Raw
from senet.data.philox import Ints, uniforms
from senet.data.sampler import NUMBER, Order

POOL = 256  # different synthetic images


class InMemory:
    """Batches of a set whose pixels [n, H, W, 3] are on the device. With fewer pixels than labels, images repeat."""

    def __init__(
        self,
        pixels: NDArray[np.uint8],
        labels: Ints,
        data: Data,
        order: Order | None,
        dealt: list[Ints],
        device: torch.device,
    ) -> None:
        self.pixels = torch.from_numpy(pixels).to(device)
        self.labels = torch.from_numpy(labels).to(device)
        self.data, self.order, self.dealt, self.device = data, order, dealt, device

    @property
    def description(self) -> dict[str, Any]:
        return {"backend": "memory", "set": self.data.set}

    def batches(self, first: int, count: int) -> Iterator[Raw]:
        """Batches `first` to `first + count - 1`."""
        for number in range(first, first + count):
            if self.order is None:
                yield self._take(self.dealt[number % len(self.dealt)])
            else:
                epoch, micro = self.order.place(number)
                keys = self.order.keys(epoch, micro)
                raw = self._take(keys & NUMBER)
                yield Raw(self._augment(raw.pixels, uniforms(self.order.seed, epoch, keys, 3)), raw.labels, epoch, keys)

    def names(self, number: int) -> list[str]:
        assert self.order is not None
        return [f"{self.data.set} {key & NUMBER}" for key in self.order.keys(*self.order.place(number))]

    def close(self) -> None:
        pass

    def _take(self, images: Ints) -> Raw:
        index = torch.from_numpy(images).to(self.device, non_blocking=True)
        return Raw(self.pixels[index % len(self.pixels)], self.labels[index])

    def _augment(self, pixels: Tensor, draws: NDArray[np.float64]) -> Tensor:
        """Zeros on each side, a random crop of the old size, a random flip (section 5.1, CIFAR)."""
        if not isinstance(self.data, Cifar):
            return pixels
        pad, size = self.data.pad, self.data.crop
        chance = torch.from_numpy(draws).to(self.device, non_blocking=True)
        columns = torch.arange(size, device=self.device).expand(len(pixels), size)
        if self.data.flip:
            columns = torch.where(chance[:, 2:3] < 0.5, columns.flip(1), columns)
        corners = (chance[:, :2] * (2 * pad + 1)).long()
        rows = corners[:, :1] + torch.arange(size, device=self.device)
        columns = corners[:, 1:] + columns
        padded = torch.nn.functional.pad(pixels, (0, 0, pad, pad, pad, pad))
        batch = torch.arange(len(pixels), device=self.device)[:, None, None]
        return padded[batch, rows[:, :, None], columns[:, None, :]]


def synthetic(data: Synthetic, images: int, seed: int) -> tuple[NDArray[np.uint8], Ints]:
    """A pool of random pixels and labels for `images` images that take them in turn: for measuring speed, nothing to
    learn.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    pixels = generator.integers(0, 256, (min(images, POOL), data.crop, data.crop, 3), np.uint8)
    return pixels, np.arange(images, dtype=np.int64) * 2654435761 % data.classes
