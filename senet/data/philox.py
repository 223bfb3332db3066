"""Random numbers as a function of (seed, epoch, image): nothing to save, nothing that depends on ranks or order.

Philox4x32-10, a counter-based generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), over
whole batches.
"""

from __future__ import annotations

import enum
import math

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Words = NDArray[np.uint64]

_MASK = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_FACTORS = np.array([[0xD2511F53], [0xCD9E8D57]], np.uint64)
_STEPS = np.outer([0x9E3779B9, 0xBB67AE85], np.arange(10)).astype(np.uint64)  # of the keys, round by round
ATTEMPTS = 10  # of the random crop, as in torchvision


class Purpose(enum.IntEnum):
    """What numbers are drawn for: each has a stream of its own, so that switching one augmentation on leaves the others
    as they were.
    """

    CROP = 1
    ORDER = 2
    REPLACE = 3
    BALANCE = 4
    POLICY = 5
    ROTATE = 6
    COLOR = 7
    SHIFT = 8
    LIGHTING = 9
    ERASE = 10
    CUTOUT = 11
    MIX = 12
    FLIP = 13


def philox(counter: list[Words], key: tuple[int, int]) -> list[Words]:
    """Return four 32-bit words (in uint64) for each counter of four 32-bit words."""
    keys = (np.array(key, np.uint64)[:, None] + _STEPS) & _MASK
    even, odd = np.stack(counter[0::2]), np.stack(counter[1::2])
    for number in range(10):
        products = (even * _FACTORS)[::-1]
        even, odd = (products >> _SHIFT) ^ odd ^ keys[:, number : number + 1], products & _MASK
    return [even[0], odd[0], even[1], odd[1]]


def _blocks(seed: int, epoch: int, keys: Ints, blocks: int, purpose: int) -> Words:
    """Return words [b, 4 * blocks]."""
    first = np.repeat(keys.astype(np.uint64), blocks)
    block = np.tile(np.arange(blocks, dtype=np.uint64), len(keys))
    counter = [first & _MASK, first >> _SHIFT, block, np.full_like(first, epoch)]
    return np.stack(philox(counter, (seed & 0xFFFFFFFF, purpose)), axis=1).reshape(len(keys), 4 * blocks)


def uniforms(seed: int, epoch: int, keys: Ints, count: int, purpose: Purpose = Purpose.CROP) -> Floats:
    """Return numbers [b, count] in [0, 1) for the images [b], or for any copy of them (see `sampler`)."""
    return _blocks(seed, epoch, keys, -(-count // 4), purpose)[:, :count] / 2.0**32


def random_keys(seed: int, epoch: int, count: int, purpose: Purpose) -> Words:
    """Return 64-bit numbers [count] to sort by."""
    words = _blocks(seed, epoch, np.arange(-(-count // 2)), 1, purpose).reshape(-1)
    return (words[0::2] << _SHIFT | words[1::2])[:count]


def permutation(seed: int, epoch: int, count: int) -> Ints:
    """Return the order of an epoch: one permutation of all images."""
    return np.argsort(random_keys(seed, epoch, count, Purpose.ORDER), kind="stable")


def flips(flip: bool | str, draws: Floats, seed: int, epoch: int, keys: Ints) -> NDArray[np.bool_]:
    """Tell which images [b] to mirror: each with probability one half by its uniform number in `draws` [b], or, if
    `flip` is "alternate", by chance in the first epoch and every other way since then (Jordan 2024, 2404.00498).
    """
    if flip == "alternate":
        return (uniforms(seed, 0, keys, 1, Purpose.FLIP)[:, 0] < 0.5) ^ bool(epoch % 2)
    return (draws < 0.5) & bool(flip)


def crops(draws: Floats, heights: Ints, widths: Ints, area: tuple[float, float], aspect: tuple[float, float]) -> Ints:
    """Return boxes [b, 4] (y, x, height, width) of uniforms [b, 22]: the paper's crop with scale and aspect ratio
    (section 5.1).

    As torchvision's RandomResizedCrop: the first of ten tries that fits, else the largest central box of an allowed
    aspect.
    """
    tries = draws[:, : 2 * ATTEMPTS].reshape(-1, ATTEMPTS, 2)
    size = (heights * widths)[:, None] * (area[0] + tries[:, :, 0] * (area[1] - area[0]))
    low, high = math.log(aspect[0]), math.log(aspect[1])
    ratio = np.exp(low + tries[:, :, 1] * (high - low))
    w, h = np.rint(np.sqrt(size * ratio)).astype(np.int64), np.rint(np.sqrt(size / ratio)).astype(np.int64)
    fits = (w > 0) & (h > 0) & (w <= widths[:, None]) & (h <= heights[:, None])
    rows, first = np.arange(len(draws)), fits.argmax(1)
    w, h = w[rows, first], h[rows, first]
    y = np.floor(draws[:, 20] * (heights - h + 1)).astype(np.int64)
    x = np.floor(draws[:, 21] * (widths - w + 1)).astype(np.int64)

    whole = widths / heights
    narrow, wide = whole < aspect[0], whole > aspect[1]
    fw = np.where(wide, np.rint(heights * aspect[1]).astype(np.int64), widths)
    fh = np.where(narrow, np.rint(widths / aspect[0]).astype(np.int64), heights)
    fh, fw = np.minimum(fh, heights), np.minimum(fw, widths)
    boxes = np.stack([y, x, h, w], 1)
    fallback = np.stack([(heights - fh) // 2, (widths - fw) // 2, fh, fw], 1)
    return np.where(fits.any(1, keepdims=True), boxes, fallback)
