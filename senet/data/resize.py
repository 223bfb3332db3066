"""Pixels cropped, flipped and resized by torch on the CPU, and memory for them.

torch's antialiased resize of bytes is vectorised, several times as fast as PIL's and DALI's, and computes as PIL's: one
value in 16 million differs by two levels, few by one.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

OPERATORS = {"bilinear": torch.ops.aten._upsample_bilinear2d_aa, "bicubic": torch.ops.aten._upsample_bicubic2d_aa}


class Pixels(NamedTuple):
    """An image [height, width, 3] of bytes that begins at the byte `start` of what `memory` is a view of."""

    memory: Tensor
    start: int
    height: int
    width: int

    @classmethod
    def of(cls, image: Tensor) -> Pixels:
        """Take a tensor [height, width, 3] without gaps."""
        height, width, _ = image.shape
        return cls(image, 0, height, width)

    def view(self, y: int, x: int, height: int, width: int) -> Tensor:
        """Return a part of it, [1, 3, height, width] and channels_last. Copies nothing."""
        line = 3 * self.width
        return self.memory.as_strided((1, 3, height, width), (height * line, 1, line, 3), self.start + y * line + 3 * x)


class Resize:
    """Writes images of bytes into `out` [1, 3, crop, crop], channels_last."""

    def __init__(self, interpolation: str) -> None:
        self.operator = OPERATORS[interpolation]

    def crop(self, image: Pixels, box: Sequence[int], flip: bool, out: Tensor) -> None:
        """Resize a `box` (y, x, height, width) of an image to the size of `out`, from right to left if `flip`."""
        part = image.view(*box)
        self.operator.out(part.flip(3) if flip else part, out.shape[2:], False, None, None, out=out)

    def centre(self, image: Pixels, size: Sequence[int], corner: Sequence[int], out: Tensor) -> None:
        """Resize an image to a `size` (height, width), and take what begins at a `corner` (y, x)."""
        (y, x), (height, width) = corner, out.shape[2:]
        whole = image.view(0, 0, image.height, image.width)
        if tuple(size) != (image.height, image.width):
            whole = self.operator(whole, size, False, None, None)
        out.copy_(whole[:, :, y : y + height, x : x + width])


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
