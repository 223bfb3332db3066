"""The pictures of the demo set: five shapes times two textures, so that a net must see both form and detail.

Everything else about a picture (size, colours, light, position, scale, turn, clutter, noise, JPEG quality) is drawn
alike for all classes: colour tells nothing. No class changes under a horizontal flip.
"""

import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Plane = NDArray[np.floating]

SHAPES = ("cross", "disc", "ring", "star", "triangle")
TEXTURES = ("dots", "stripes")
CLASSES = tuple(f"{shape}_{texture}" for shape in SHAPES for texture in TEXTURES)


def jpeg(name: str, rng: np.random.Generator) -> bytes:
    """Return a JPEG of class `name`, one of CLASSES; its sides are 120 to 260 pixels, of one in twenty twice that."""
    pixels = draw(name, rng)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=int(rng.integers(75, 96)))
    return file.getvalue()


def draw(name: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return the pixels, (height, width, 3), of one picture of class `name`."""
    shape, texture = name.split("_")
    height, width = (int(pixels) for pixels in rng.integers(120, 261, size=2) * (2 if rng.random() < 0.05 else 1))
    # Not narrower than 2:3, so that the centre crop of validation keeps the object.
    height, width = max(height, width * 2 // 3), max(width, height * 2 // 3)
    side = min(height, width)

    canvas = _background(height, width, rng)
    for _ in range(int(rng.integers(2, 6))):
        _clutter(canvas, side, rng)

    radius = side * rng.uniform(0.26, 0.42)
    centre = np.array([height, width]) / 2 + rng.uniform(-0.1, 0.1, size=2) * side
    y, x = _turned(height, width, centre, rng)
    mask = np.clip(0.5 - _outside(shape, y / radius, x / radius) * radius, 0, 1)
    figure, ground = _two_colours(rng)
    period = radius * rng.uniform(0.34, 0.46)
    y, x = _turned(height, width, rng.uniform(0, side, size=2), rng)
    ink = _texture(texture, y / period, x / period, period)[..., None]
    canvas += mask[..., None] * (ink * figure + (1 - ink) * ground - canvas)

    canvas += rng.uniform(0.01, 0.05) * rng.standard_normal((height, width, 1), np.float32)
    return (np.clip(canvas, 0, 1) * 255).astype(np.uint8)


def _background(height: int, width: int, rng: np.random.Generator) -> Plane:
    """Draw soft clouds of any colour and brightness."""
    cells = int(rng.integers(2, 7))
    clouds = rng.uniform(0, 1, size=3) + rng.normal(0, rng.uniform(0.05, 0.2), size=(cells, cells, 3))
    small = Image.fromarray((np.clip(clouds, 0, 1) * 255).astype(np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255


def _clutter(canvas: Plane, side: int, rng: np.random.Generator) -> None:
    """Draw one bar or blob of a single colour, too small to be the object."""
    height, width, _ = canvas.shape
    y, x = _turned(height, width, rng.uniform(0, (height, width)), rng)
    long, thin = side * rng.uniform(0.1, 0.4), side * rng.uniform(0.01, 0.06)
    far = np.maximum(np.abs(y) - long, np.abs(x) - thin) if rng.random() < 0.5 else np.hypot(y, x) - 1.5 * thin
    mask = np.clip(0.5 - far, 0, 1)[..., None]
    canvas += mask * (rng.uniform(0, 1, size=3).astype(np.float32) - canvas)


def _turned(height: int, width: int, centre: NDArray[np.float64], rng: np.random.Generator) -> tuple[Plane, Plane]:
    """Return coordinates, in pixels, of a frame at `centre` turned by a random angle."""
    angle = rng.uniform(0, 2 * math.pi)
    y = np.arange(height, dtype=np.float32)[:, None] - np.float32(centre[0])
    x = np.arange(width, dtype=np.float32)[None, :] - np.float32(centre[1])
    cos, sin = math.cos(angle), math.sin(angle)
    return cos * y - sin * x, sin * y + cos * x


def _outside(shape: str, y: Plane, x: Plane) -> Plane:
    """Return about the distance to the edge of a shape of radius 1 around the origin, negative inside."""
    if shape == "disc":
        return np.hypot(y, x) - 0.9
    if shape == "ring":
        return np.abs(np.hypot(y, x) - 0.72) - 0.24
    if shape == "cross":
        y, x = np.abs(y), np.abs(x)
        return np.maximum(np.maximum(y, x) - 0.95, np.minimum(y, x) - 0.28)
    corners, inner = {"triangle": (3, 0.5), "star": (5, 0.42)}[shape]
    # One edge, from a corner at radius 1 to a dent at radius `inner`, folded around.
    half = math.pi / corners
    angle = np.abs((np.arctan2(y, x) + half) % (2 * half) - half)
    across, along = inner * math.sin(half), 1 - inner * math.cos(half)
    far: Plane = np.hypot(y, x)
    edge: Plane = (far * np.cos(angle) - 1) * across + far * np.sin(angle) * along
    return edge / math.hypot(across, along)


def _texture(texture: str, y: Plane, x: Plane, period: float) -> Plane:
    """Return the ink, 0 to 1, of a pattern that repeats every `period` pixels; half of its area is ink."""
    far: Plane = np.abs(x % 1 - 0.5) - 0.25 if texture == "stripes" else np.hypot(y % 1 - 0.5, x % 1 - 0.5) - 0.37
    ink: Plane = np.clip(0.5 - far * period, 0, 1)
    return ink


def _two_colours(rng: np.random.Generator) -> tuple[Plane, Plane]:
    """Choose two colours that differ clearly, in either order of brightness."""
    while True:
        first, second = rng.uniform(0, 1, size=(2, 3)).astype(np.float32)
        if np.abs(first - second).sum() > 0.9:
            return first, second
