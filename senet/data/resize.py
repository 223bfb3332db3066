"""Pixels cropped, flipped and resized by torch on the CPU, and memory for them.

torch's antialiased resize of bytes is vectorised, several times as fast as PIL's and DALI's, and computes as PIL's: one
value in 16 million differs by two levels, few by one.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# As torch.nn.functional.interpolate calls them, which cannot write into a tensor; by torch.ops they take 8 us longer.
OPERATORS: dict[str, Any] = {
    "bilinear": torch._C._nn._upsample_bilinear2d_aa,
    "bicubic": torch._C._nn._upsample_bicubic2d_aa,
}


def planes(image: Tensor) -> Tensor:
    """Return an image [H, W, 3] without gaps as [1, 3, H, W], channels_last. Copies nothing."""
    height, width, _ = image.shape
    return image.as_strided((1, 3, height, width), (3 * height * width, 1, 3 * width, 3))


class Resize:
    """Writes images of bytes [1, 3, H, W] into `out` [1, 3, crop, crop], all channels_last."""

    def __init__(self, interpolation: str) -> None:
        self.operator = OPERATORS[interpolation]

    def crop(self, image: Tensor, flip: bool, out: Tensor) -> None:
        """Resize an image to the size of `out`, from right to left if `flip`."""
        self.operator(image.flip(3) if flip else image, out.shape[2:], False, None, None, out=out)

    def centre(self, image: Tensor, size: Sequence[int], corner: Sequence[int], out: Tensor) -> None:
        """Resize an image to a `size` (height, width), and take what begins at a `corner` (y, x)."""
        (y, x), (height, width) = corner, out.shape[2:]
        if tuple(size) != image.shape[2:]:
            image = self.operator(image, size, False, None, None)
        out.copy_(image[:, :, y : y + height, x : x + width])


class Buffers:
    """Memory for batches on the host, used again when no tensor is in it any more: fresh memory costs a page fault for
    each of its 4 kB, which takes longer than to fill it. `pinned` memory goes to a GPU at once; torch keeps it itself.
    """

    def __init__(self, dtype: type[np.generic] = np.uint8, pinned: bool = False) -> None:
        self.dtype, self.pinned = dtype, pinned
        self.free: list[NDArray[np.generic]] = []

    def take(self, *shape: int) -> Tensor:
        """Return a tensor of any content."""
        if self.pinned:
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        while self.free:
            if (array := self.free.pop()).shape == shape:
                break
        else:
            array = np.empty(shape, self.dtype)
        lent = array.view()  # lives as long as a tensor is in it
        weakref.finalize(lent, self.free.append, array).atexit = False
        return torch.from_numpy(lent)
