"""AutoAugment, RandAugment and TrivialAugment: which operations an image gets, and how strong, and the operations in
PIL.

Cubuk et al. 2018 (1805.09501), Cubuk et al. 2019 (1909.13719), Müller and Hutter 2021 (2103.10158). The operations and
their strengths are torchvision's, those of the papers; unlike torchvision's both backends interpolate bilinearly and
fill with grey, as the authors' code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from senet.config import Policy, RandAugment
from senet.data.philox import Floats, Ints, Purpose, uniforms

SIGNED = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color", "contrast", "sharpness")
OPERATIONS = ("identity", *SIGNED, "posterize", "solarize", "auto_contrast", "equalize", "invert")
RANDOM = OPERATIONS[:-1]  # RandAugment and TrivialAugment do not invert
FILL = 128  # grey, of what comes in from outside
BINS = {"autoaugment": 10, "randaugment": 31, "trivialaugment": 31}

ENHANCERS: dict[str, Callable[[Image.Image], Any]] = {
    "brightness": ImageEnhance.Brightness,
    "color": ImageEnhance.Color,
    "contrast": ImageEnhance.Contrast,
    "sharpness": ImageEnhance.Sharpness,
}
PLAIN: dict[str, Callable[[Image.Image], Image.Image]] = {
    "auto_contrast": ImageOps.autocontrast,
    "equalize": ImageOps.equalize,
    "invert": ImageOps.invert,
}

# AutoAugment's 25 policies for ImageNet: two operations each, with probability and strength (a bin).
POLICIES = [
    [word.split() for word in line.split(",")]
    for line in """
    posterize .4 8, rotate .6 9
    solarize .6 5, auto_contrast .6 0
    equalize .8 0, equalize .6 0
    posterize .6 7, posterize .6 6
    equalize .4 0, solarize .2 4
    equalize .4 0, rotate .8 8
    solarize .6 3, equalize .6 0
    posterize .8 5, equalize 1 0
    rotate .2 3, solarize .6 8
    equalize .6 0, posterize .4 6
    rotate .8 8, color .4 0
    rotate .4 9, equalize .6 0
    equalize 0 0, equalize .8 0
    invert .6 0, equalize 1 0
    color .6 4, contrast 1 8
    rotate .8 8, color 1 2
    color .8 8, solarize .8 7
    sharpness .4 7, invert .6 0
    shear_x .6 5, equalize 1 0
    color .4 0, equalize .6 0
    equalize .4 0, solarize .2 4
    solarize .6 5, auto_contrast .6 0
    invert .6 0, equalize 1 0
    color .6 4, contrast 1 8
    equalize .8 0, equalize .6 0
    """.strip().splitlines()
]


@dataclass(frozen=True)
class Choice:
    """For each of b images n operations in turn: positions in OPERATIONS, bins of strength and signs (1: negative), all
    int32 [b, n].
    """

    operations: NDArray[np.int32]
    bins: NDArray[np.int32]
    signs: NDArray[np.int32]


def levels(policy: str) -> dict[str, Floats]:
    """Return the strength of each operation by bin: shear, shift as a share of the side, degrees, 1 +- factor, bits
    kept, threshold.
    """
    bins = BINS[policy]
    wide = policy == "trivialaugment"
    shear, shift, angle, factor, bits = (0.99, 32 / 224, 135.0, 0.99, 6) if wide else (0.3, 150 / 331, 30.0, 0.9, 4)
    largest = {"shear_x": shear, "shear_y": shear, "translate_x": shift, "translate_y": shift, "rotate": angle}
    table = {name: np.linspace(0, largest.get(name, factor), bins) for name in SIGNED}
    table["posterize"] = 8 - np.round(np.arange(bins) / ((bins - 1) / bits))
    table["solarize"] = np.linspace(255, 0, bins)
    return table


def operations(policy: Policy) -> int:
    """Return how many operations an image gets, one after the other."""
    return policy.ops if isinstance(policy, RandAugment) else {"autoaugment": 2, "trivialaugment": 1}[policy.name]


def choose(policy: Policy, seed: int, epoch: int, keys: Ints) -> Choice:
    """Choose what the images `keys` [b] get; nothing but (seed, epoch, key) decides."""
    if policy.name == "autoaugment":
        return _autoaugment(uniforms(seed, epoch, keys, 5, Purpose.POLICY))
    count = operations(policy)
    draws = uniforms(seed, epoch, keys, 3 * count, Purpose.POLICY).reshape(-1, count, 3)
    chosen = (draws[..., 0] * len(RANDOM)).astype(np.int32)
    bins = (draws[..., 1] * BINS["trivialaugment"]).astype(np.int32)
    if isinstance(policy, RandAugment):
        bins[:] = policy.magnitude
    return Choice(chosen, bins, (draws[..., 2] < 0.5).astype(np.int32))


def _autoaugment(draws: Floats) -> Choice:
    names = np.array([[OPERATIONS.index(operation[0]) for operation in pair] for pair in POLICIES], np.int32)
    chances = np.array([[float(operation[1]) for operation in pair] for pair in POLICIES])
    bins = np.array([[int(operation[2]) for operation in pair] for pair in POLICIES], np.int32)
    which = (draws[:, 0] * len(POLICIES)).astype(np.int64)
    happens = draws[:, 1:3] < chances[which]
    return Choice(
        np.where(happens, names[which], 0).astype(np.int32), bins[which], (draws[:, 3:5] < 0.5).astype(np.int32)
    )


class Operations:
    """A policy's operations on PIL images."""

    def __init__(self, policy: Policy | None) -> None:
        self.levels = levels(policy.name) if policy else {}

    def __call__(self, image: Image.Image, choice: Choice, row: int) -> Image.Image:
        """Do to an RGB image what `choice` has in a row."""
        for operation, bin_, sign in zip(choice.operations[row], choice.bins[row], choice.signs[row], strict=True):
            name = OPERATIONS[operation]
            level = float(self.levels[name][bin_]) if name in self.levels else 0.0
            image = apply(image, name, -level if sign and name in SIGNED else level)
        return image


def apply(image: Image.Image, name: str, level: float) -> Image.Image:
    """Do one operation of OPERATIONS to an RGB image."""
    width, height = image.size
    if name in ("shear_x", "shear_y", "translate_x", "translate_y"):
        # PIL maps pixels of the result to those of the source: the opposite direction.
        matrix = {
            "shear_x": (1, -level, 0, 0, 1, 0),
            "shear_y": (1, 0, 0, -level, 1, 0),
            "translate_x": (1, 0, -level * width, 0, 1, 0),
            "translate_y": (1, 0, 0, 0, 1, -level * height),
        }[name]
        return image.transform(
            image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=(FILL,) * 3
        )
    if name == "rotate":
        return image.rotate(level, Image.Resampling.BILINEAR, fillcolor=(FILL,) * 3)
    if name == "posterize":
        return ImageOps.posterize(image, int(level))
    if name == "solarize":
        return ImageOps.solarize(image, math.ceil(level))
    if name in ENHANCERS:
        return ENHANCERS[name](image).enhance(1 + level)
    return PLAIN[name](image) if name in PLAIN else image
