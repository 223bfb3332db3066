"""Charts show what they are given: where it stands, and by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from senet.errors import UsageError
from senet.plots import COLOURS, SHARP, Axis, Bar, Line, bars, beside, lines, number, save


def painted(chart: Image.Image, colour: str) -> np.ndarray:
    """[n, 2] rows and columns of the pixels of one colour below the legend, in points."""
    pixels = np.asarray(chart).astype(int)
    near = np.abs(pixels - np.array(ImageColor.getrgb(colour))).sum(2) < 12
    near[: 84 * SHARP] = False
    return np.argwhere(near) / SHARP


def test_bars_are_as_long_as_their_values() -> None:
    rows = [
        Bar("a", 100, "first"),
        Bar("a", 50, "second"),
        Bar("b", None, "first"),
        Bar("b", 25, "third", low=20, high=30, limit=110),
    ]
    chart = bars("title", rows, Axis("images a second"), "note")
    lengths = [np.ptp(painted(chart, colour)[:, 1]) for colour in COLOURS[:3]]
    assert lengths[1] / lengths[0] == pytest.approx(0.5, abs=0.02)
    assert lengths[2] / lengths[0] == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize(
    ("scale", "points"), [("linear", [(0, 0), (50, 50), (100, 100)]), ("log10", [(1, 1), (10, 10), (100, 100)])]
)
def test_points_stand_where_their_numbers_say(scale: str, points: list[tuple[float, float]]) -> None:
    axis = Axis("x", scale)  # type: ignore[arg-type]
    chart = lines("title", [Line("measured", points, dots=True)], axis, axis)
    dots = painted(chart, COLOURS[0])
    columns = [dots[(dots[:, 1] > edge - 8) & (dots[:, 1] < edge + 8)].mean(0) for edge in _thirds(dots)]
    (low, left), (middle, centre), (high, right) = columns
    assert (low + high) / 2 == pytest.approx(middle, abs=1.5)
    assert (left + right) / 2 == pytest.approx(centre, abs=1.5)
    assert low > high


def _thirds(dots: np.ndarray) -> list[float]:
    first, last = dots[:, 1].min() + 5, dots[:, 1].max() - 5
    return [first, (first + last) / 2, last]


def test_dashed_lines_have_gaps() -> None:
    axis = Axis("x")
    full, dashed = (
        len(painted(lines("", [Line("a", [(0, 0), (30, 40)], dashed=dash)], axis, axis), COLOURS[0]))
        for dash in (False, True)
    )
    assert 0.5 < dashed / full < 0.8


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="GPUs: 0 has no logarithm"):
        lines("", [Line("a", [(0, 1), (1, 1)])], Axis("GPUs", "log2"), Axis("y"))
    with pytest.raises(ValueError, match="nothing to draw"):
        lines("", [Line("a", [(1, float("nan"))])], Axis("x"), Axis("y"))
    page = beside(bars("", [Bar("a", 1)], Axis("x")), bars("", [Bar("a", 0)], Axis("x")))
    with pytest.raises(UsageError, match=r"name a \.png file in a folder that exists"):
        save(page, tmp_path / "nowhere" / "page.png")
    save(page, tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as read:
        assert read.size == page.size


def test_numbers_are_short() -> None:
    told = [number(value) for value in (0, 0.25, 999, 2048, 10_000, 12_500, 999_900, 6.88e6, 1.5e9)]
    assert told == ["0", "0.25", "999", "2,048", "10k", "12.5k", "1M", "6.88M", "1.5G"]
