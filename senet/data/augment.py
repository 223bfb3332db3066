"""Augmentation of whole batches on the device: rotation, colour, erasing, mixup and cutmix, alike for all backends.

What is random is drawn on the host from (seed, epoch, key), so it is the same on any number of ranks. Everything that
is done to colours is one 3x4 matrix for each image, and its result is clipped once.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from senet.config import Data
from senet.data.philox import Floats, Ints, Purpose, crops, uniforms

GREY = torch.tensor([0.299, 0.587, 0.114])
# Principal components of ImageNet's colours (Krizhevsky et al. 2012, section 4.1), as fb.resnet.torch gives them; of
# pixels in 0..1.
VALUES = np.array([0.2175, 0.0188, 0.0045])
VECTORS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
YIQ_INVERSE = torch.linalg.inv(YIQ)  # here, on the CPU: on a GPU it is checked, for which the host would wait
ERASED_AREA, ERASED_ASPECT = (0.02, 1 / 3), (0.3, 3.3)  # Zhong et al. 2020 (1708.04896)
TRIES = 16  # to draw from a Beta distribution


class AugmentParams(NamedTuple):
    """What was drawn for b images; None for what the config does not ask for."""

    angles: Tensor | None = None  # [b] radians
    factors: Tensor | None = None  # [b, 4] brightness, contrast, saturation (1: as it was), hue (turns)
    shifts: Tensor | None = None  # [b, 3] levels of 255 added to red, green, blue
    erased: Tensor | None = None  # [b, k, 4] boxes (y, x, height, width)
    weights: Tensor | None = None  # [b] of the image itself when it is mixed with its neighbour
    pasted: Tensor | None = None  # [b, 4] boxes taken from the neighbour; empty if mixup mixes

    def to(self, device: torch.device) -> AugmentParams:
        return AugmentParams(*(None if part is None else part.to(device, non_blocking=True) for part in self))


class Augmentation:
    """What is done to batches: `draw` on the host, `change` pixels and `mix` images on the device."""

    def __init__(self, data: Data, seed: int) -> None:
        self.data, self.augment, self.seed = data, data.augment, seed

    def draw(self, epoch: int, keys: Ints, side: int) -> AugmentParams:
        """Draw for the images `keys` [b] of an epoch, which have `side` x `side` pixels."""
        augment = self.augment
        angles = factors = shifts = erased = weights = pasted = None
        if augment.rotate:
            angles = _tensor(np.deg2rad(augment.rotate) * self._signed(epoch, keys, 1, Purpose.ROTATE)[:, 0])
        if any(augment.color_jitter):
            factors = _tensor(
                np.array([1, 1, 1, 0]) + np.array(augment.color_jitter) * self._signed(epoch, keys, 4, Purpose.COLOR)
            )
        if augment.lighting or augment.pixel_jitter:
            shift = augment.pixel_jitter * self._signed(epoch, keys, 3, Purpose.SHIFT)
            shifts = _tensor(shift + 255 * (augment.lighting * self._normal(epoch, keys) * VALUES) @ VECTORS.T)
        if augment.erase or augment.cutout:
            erased = torch.from_numpy(np.stack([*self._erased(epoch, keys, side), *self._cutout(epoch, keys, side)], 1))
        if augment.mixup or augment.cutmix:
            weight, box = self._mixed(epoch, keys, side)
            weights, pasted = _tensor(weight), torch.from_numpy(box)
        return AugmentParams(angles, factors, shifts, erased, weights, pasted)

    def _signed(self, epoch: int, keys: Ints, count: int, purpose: Purpose) -> Floats:
        return 2 * uniforms(self.seed, epoch, keys, count, purpose) - 1

    def _normal(self, epoch: int, keys: Ints) -> Floats:
        u = uniforms(self.seed, epoch, keys, 6, Purpose.LIGHTING)
        return np.sqrt(-2 * np.log1p(-u[:, :3])) * np.cos(2 * np.pi * u[:, 3:])

    def _erased(self, epoch: int, keys: Ints, side: int) -> list[Ints]:
        if not self.augment.erase:
            return []
        u = uniforms(self.seed, epoch, keys, 23, Purpose.ERASE)
        sides = np.full(len(keys), side)
        return [crops(u, sides, sides, ERASED_AREA, ERASED_ASPECT) * (u[:, 22:] < self.augment.erase)]

    def _cutout(self, epoch: int, keys: Ints, side: int) -> list[Ints]:
        """Draw a square with its centre anywhere in the image (DeVries and Taylor 2017, 1708.04552)."""
        if not self.augment.cutout:
            return []
        hole, centre = self.augment.cutout, side * uniforms(self.seed, epoch, keys, 2, Purpose.CUTOUT)
        corner = centre.astype(np.int64) - hole // 2
        return [np.concatenate([corner, np.full_like(corner, hole)], 1)]

    def _mixed(self, epoch: int, keys: Ints, side: int) -> tuple[Floats, Ints]:
        """Return the share of each image itself, at least a half, and the box taken from its neighbour."""
        u = uniforms(self.seed, epoch, keys, 3 + 4 * TRIES, Purpose.MIX)
        mixup, cutmix = self.augment.mixup, self.augment.cutmix
        cuts = u[:, 0] < 0.5 if mixup and cutmix else np.full(len(keys), bool(cutmix))
        share = np.where(cuts, _beta(u[:, 3 : 3 + 2 * TRIES], cutmix or 1), _beta(u[:, 3 + 2 * TRIES :], mixup or 1))
        share = np.maximum(share, 1 - share)
        cut = (side * np.sqrt(1 - share) * cuts).astype(np.int64)[:, None]
        low = (side * u[:, 1:3]).astype(np.int64) - cut // 2
        high = np.minimum(low + cut, side)
        box = np.concatenate([np.maximum(low, 0), high - np.maximum(low, 0)], 1)
        return np.where(cuts, 1 - box[:, 2] * box[:, 3] / side**2, share), box

    def change(self, pixels: Tensor, params: AugmentParams) -> Tensor:
        """Turn and colour float pixels [b, H, W, 3] in 0..255."""
        if params.angles is not None:
            pixels = _rotate(pixels, params.angles)
        if params.factors is not None or params.shifts is not None:
            pixels = _colour(pixels, params.factors, params.shifts)
        return pixels

    def mix(self, images: Tensor, params: AugmentParams) -> Tensor:
        """Erase parts of normalised images [b, 3, H, W] (in place, to the mean colour) and mix them with their
        neighbours.
        """
        if params.erased is not None:
            for boxes in params.erased.unbind(1):
                images.masked_fill_(_inside(boxes, images.shape[-1]), 0)  # a copy would not be channels_last
        if params.weights is not None and params.pasted is not None:
            cuts = params.pasted[:, 2:].amin(1) > 0
            kept = torch.where(cuts, 1.0, params.weights).view(-1, 1, 1, 1)
            kept = kept.masked_fill(_inside(params.pasted, images.shape[-1]), 0)
            images = torch.lerp(neighbours(images), images, kept)
        return images


def neighbours(batch: Tensor) -> Tensor:
    """Return what each image is mixed with: 2k with 2k + 1 and the other way round, the same on any number of ranks."""
    return batch.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def _tensor(numbers: Floats) -> Tensor:
    return torch.from_numpy(numbers.astype(np.float32))


def _beta(u: Floats, alpha: float) -> Floats:
    """Make numbers [b] of Beta(alpha, alpha), alpha at most 1, of uniforms [b, 2 * TRIES]: Jöhnk's method (1964)."""
    x, y = (u.reshape(len(u), -1, 2) ** (1 / alpha)).transpose(2, 0, 1)
    total = x + y
    fits = (total <= 1) & (total > 0)
    rows, first = np.arange(len(u)), fits.argmax(1)
    share = x[rows, first] / np.where(fits.any(1), total[rows, first], 1)
    return np.where(fits.any(1), share, 1.0)


def _rotate(pixels: Tensor, angles: Tensor) -> Tensor:
    """Turn images, bilinearly; what comes in from outside is a reflection."""
    cos, sin, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    turn = torch.stack([cos, -sin, zero, sin, cos, zero], 1).view(-1, 2, 3)
    images = pixels.permute(0, 3, 1, 2)
    grid = F.affine_grid(turn, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False).permute(0, 2, 3, 1).contiguous()


def _colour(pixels: Tensor, factors: Tensor | None, shifts: Tensor | None) -> Tensor:
    flat = pixels.flatten(1, 2)
    matrix = torch.eye(3, device=pixels.device).expand(len(pixels), 3, 3)
    offset = torch.zeros(len(pixels), 3, device=pixels.device)
    if factors is not None:
        grey = _on(pixels.device)[0]
        brightness, contrast, saturation = (factors[:, column].view(-1, 1, 1) for column in range(3))
        middle = (flat.mean(1) @ grey)[:, None] * brightness[:, 0]
        matrix, offset = matrix * brightness * contrast, ((1 - contrast[:, 0]) * middle).expand(-1, 3)
        other = (saturation * torch.eye(3, device=pixels.device) + (1 - saturation) * grey) @ matrix
        # Grey stays grey, so the offset, alike in all channels, stays as it is.
        matrix = _hue(factors[:, 3]) @ other
    if shifts is not None:
        offset = offset + shifts
    return torch.baddbmm(offset[:, None], flat, matrix.transpose(1, 2)).clamp_(0, 255).view_as(pixels)


def _hue(turns: Tensor) -> Tensor:
    """Return rotations [b, 3, 3] of the colour plane of YIQ."""
    cos, sin = (2 * math.pi * turns).cos(), (2 * math.pi * turns).sin()
    one, zero = torch.ones_like(cos), torch.zeros_like(cos)
    turn = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], 1).view(-1, 3, 3)
    _, yiq, inverse = _on(turns.device)
    return inverse @ turn @ yiq


@functools.cache
def _on(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return GREY, YIQ and its inverse, moved once: each move would wait for the device."""
    return GREY.to(device), YIQ.to(device), YIQ_INVERSE.to(device)


def _inside(boxes: Tensor, side: int) -> Tensor:
    """Tell which pixels are in the boxes [b, 4] (y, x, height, width): bool [b, 1, side, side]."""
    pixels = torch.arange(side, device=boxes.device)
    y, x, height, width = boxes.unsqueeze(-1).unbind(1)
    rows, columns = (pixels >= y) & (pixels < y + height), (pixels >= x) & (pixels < x + width)
    return (rows[:, :, None] & columns[:, None, :])[:, None]
