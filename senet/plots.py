"""Line and bar charts as PNG, drawn with PIL: `lines`, `bars`, `beside`, `save`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

from senet.errors import UsageError

# Okabe and Ito's colours, told apart by the colour-blind as well.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
INK, FAINT, GRID = "#222222", "#6b6b6b", "#e4e4e4"
WIDTH, HEIGHT = 880, 560  # of a chart, in points
FINE = 3  # drawn so many times as large, then reduced: PIL's lines have steps
SHARP = 2  # pixels a point in the end
TITLE, TEXT, SMALL = 20, 15, 13


@dataclass(frozen=True)
class Axis:
    """`low` and `high` are those of the data where not given; a logarithmic axis ends at round ones."""

    name: str
    scale: Literal["linear", "log2", "log10"] = "linear"
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Line:
    label: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False
    dots: bool = False  # alone, without a line between them: what was measured, beside what is modelled


@dataclass(frozen=True)
class Bar:
    """Bars of one label in a row stand together; `group` chooses the colour and is told by the legend. No value: said
    so instead.
    """

    label: str
    value: float | None
    group: str = ""
    low: float | None = None  # spread
    high: float | None = None
    limit: float | None = None  # a mark of what would be possible
    text: str = ""  # instead of the value's number


def lines(title: str, series: Sequence[Line], x: Axis, y: Axis, note: str = "") -> Image.Image:
    """Lines over a common pair of axes. Every series needs a point. Raises ValueError where none is left, or for log of
    what is not > 0.
    """
    across = _Scale(x, [point[0] for line in series for point in line.points])
    up = _Scale(y, [point[1] for line in series for point in line.points])
    page = _Page(HEIGHT)
    top = page.head(
        title, [(line.label, COLOURS[i % len(COLOURS)], line.dashed, line.dots) for i, line in enumerate(series)], note
    )
    left = 34 + max(page.wide(number(tick), SMALL) for tick in up.ticks) + 10
    right, bottom = WIDTH - 34, HEIGHT - (84 if note else 62)

    def place(point: tuple[float, float]) -> tuple[float, float]:
        return left + across.share(point[0]) * (right - left), bottom - up.share(point[1]) * (bottom - top)

    for tick in up.ticks:
        _, height = place((across.low, tick))
        page.line([(left, height), (right, height)], GRID)
        page.text((left - 8, height), number(tick), SMALL, FAINT, "rm")
    for tick in across.ticks:
        over, _ = place((tick, up.low))
        page.line([(over, bottom), (over, bottom + 5)], FAINT)
        page.text((over, bottom + 9), number(tick), SMALL, FAINT, "ma")
    page.line([(left, bottom), (right, bottom)], FAINT, 1.4)
    page.text(((left + right) / 2, bottom + 31), x.name, TEXT, INK, "ma")
    page.upright((8, (top + bottom) / 2), y.name)
    for i, line in enumerate(series):
        colour = COLOURS[i % len(COLOURS)]
        places = [place(point) for point in sorted(line.points)]
        if not line.dots:
            page.line(places, colour, 2.6, line.dashed)
        for spot in places if line.dots or (len(places) <= 16 and not line.dashed) else []:
            page.dot(spot, 5 if line.dots else 3.4, colour)
    return page.finish()


def bars(title: str, rows: Sequence[Bar], x: Axis, note: str = "") -> Image.Image:
    """Horizontal bars from zero, in the order given. The chart is as high as they need."""
    if x.scale != "linear":
        raise ValueError("bars start at zero, which has no logarithm")
    groups = list(dict.fromkeys(bar.group for bar in rows))
    colour = {group: COLOURS[i % len(COLOURS)] for i, group in enumerate(groups)}
    across = _Scale(
        x, [0.0] + [value for bar in rows for value in (bar.value, bar.high, bar.limit) if value is not None]
    )
    thick, apart = 22, 12
    breaks = sum(a.label != b.label for a, b in pairwise(rows))
    page = _Page(_Page.head_height(any(groups)) + len(rows) * thick + breaks * apart + (84 if note else 62) + 14)
    top = page.head(title, [(group, colour[group], False, False) for group in groups if group], note)
    left = 22 + max(page.wide(bar.label, TEXT) for bar in rows) + 12
    right, bottom = WIDTH - 84, page.height - (84 if note else 62)
    for tick in across.ticks:
        over = left + across.share(tick) * (right - left)
        page.line([(over, top), (over, bottom)], GRID)
        page.text((over, bottom + 7), number(tick), SMALL, FAINT, "ma")
    height = top + 7.0
    for i, bar in enumerate(rows):
        if i and rows[i - 1].label != bar.label:
            height += apart
        middle = height + thick / 2
        if i == 0 or rows[i - 1].label != bar.label:
            alike = next((n for n, other in enumerate(rows[i:]) if other.label != bar.label), len(rows) - i)
            page.text((left - 10, height + alike * thick / 2), bar.label, TEXT, INK, "rm")
        ends = [
            left + across.share(value) * (right - left)
            for value in (bar.value, bar.low, bar.high, bar.limit)
            if value is not None
        ]
        if bar.value is None:
            page.text((left + 6, middle), bar.text or "not measured", SMALL, FAINT, "lm")
        else:
            page.box((left, height + 2), (ends[0], height + thick - 2), colour[bar.group])
            told, over = bar.text or number(bar.value), max(ends[:-1] if bar.limit is not None else ends) + 7
            if bar.limit is not None and over - 10 < ends[-1] < over + page.wide(told, SMALL) + 4:
                over = ends[-1] + 7
            page.text((over, middle), told, SMALL, INK, "lm")
        if bar.value is not None and bar.low is not None and bar.high is not None:
            page.line([(ends[1], middle), (ends[2], middle)], INK, 1.4)
            for end in ends[1:3]:
                page.line([(end, middle - 4), (end, middle + 4)], INK, 1.4)
        if bar.limit is not None:
            page.line([(ends[-1], height), (ends[-1], height + thick)], INK, 2.4)
        height += thick
    page.line([(left, top), (left, bottom)], FAINT, 1.4)
    page.text(((left + right) / 2, bottom + 29), x.name, TEXT, INK, "ma")
    return page.finish()


def beside(*charts: Image.Image) -> Image.Image:
    """Charts in a row on one page."""
    page = Image.new("RGB", (sum(chart.width for chart in charts), max(chart.height for chart in charts)), "white")
    left = 0
    for chart in charts:
        page.paste(chart, (left, 0))
        left += chart.width
    return page


def save(chart: Image.Image, file: Path) -> None:
    """Write a chart; the name's ending says the format. Raises UsageError."""
    try:
        chart.save(file)
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}: cannot be written: {error}; name a .png file in a folder that exists") from None


def number(value: float) -> str:
    """Three digits and a suffix: 0.95, 950, 1,250, 64k, 2.1M."""
    for size, suffix, least in ((1e9, "G", 999.5e6), (1e6, "M", 999.5e3), (1e3, "k", 1e4)):
        if abs(value) >= least:
            return f"{value / size:.3g}{suffix}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


class _Scale:
    """Numbers along an axis: the share of its length at which each stands, and its ticks."""

    def __init__(self, axis: Axis, values: Sequence[float]) -> None:
        if not values or not all(math.isfinite(value) for value in values):
            raise ValueError(f"{axis.name}: nothing to draw, or not finite")
        self.base = {"linear": 0, "log2": 2, "log10": 10}[axis.scale]
        low, high = (min(values) if axis.low is None else axis.low), (max(values) if axis.high is None else axis.high)
        if not self.base:
            step = _step((high - low) or abs(high) or 1.0)
            self.low = low if axis.low is not None else math.floor(low / step + 1e-9) * step
            self.high = (
                high
                if axis.high is not None
                else max(math.ceil(high / step - 1e-9), math.floor(self.low / step) + 1) * step
            )
            self.ticks = [
                k * step for k in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)
            ]
            return
        if low <= 0:
            raise ValueError(f"{axis.name}: {low} has no logarithm")
        first, last = math.floor(math.log(low, self.base) + 1e-9), math.ceil(math.log(high, self.base) - 1e-9)
        last = max(last, first + 1)
        powers = [float(self.base) ** power for power in range(first, last + 1)]
        ends = sorted({power * factor for power in powers for factor in ((1,) if self.base == 2 else (1, 2, 5))})
        self.low = max(end for end in ends if end <= low * (1 + 1e-9))
        self.high = min(end for end in ends if end >= high * (1 - 1e-9) and end > self.low)
        self.ticks = [power for power in powers[:: 1 + (last - first) // 13] if self.low <= power <= self.high]

    def share(self, value: float) -> float:
        if not self.base:
            return (value - self.low) / (self.high - self.low)
        return math.log(value / self.low) / math.log(self.high / self.low)


def _step(span: float) -> float:
    """A round distance of ticks, four to eight of them over `span`."""
    power = 10.0 ** math.floor(math.log10(span / 4))
    return next(power * factor for factor in (10, 5, 2.5, 2, 1) if span / (power * factor) >= 4 or factor == 1)


class _Page:
    """White paper measured in points."""

    def __init__(self, height: float) -> None:
        self.height = height
        self.paper = Image.new("RGB", (WIDTH * FINE, int(height * FINE)), "white")
        self.pen = ImageDraw.Draw(self.paper)
        self.fonts = {size: ImageFont.load_default(size * FINE) for size in (TITLE, TEXT, SMALL)}

    @staticmethod
    def head_height(legend: bool) -> int:
        return 90 if legend else 56

    def head(self, title: str, legend: Sequence[tuple[str, str, bool, bool]], note: str) -> float:
        """Title, legend and foot note; the height at which the drawing may begin."""
        self.text((22, 16), title, TITLE, INK, "la")
        over = 22.0
        for label, colour, dashed, dots in legend:
            if dots:
                self.dot((over + 12, 61), 5, colour)
            else:
                self.line([(over, 61), (over + 24, 61)], colour, 4, dashed)
            self.text((over + 31, 61), label, SMALL, INK, "lm")
            over += 31 + self.wide(label, SMALL) + 24
        if note:
            self.text((22, self.height - 26), note, SMALL, FAINT, "la")
        return self.head_height(bool(legend))

    def wide(self, text: str, size: int) -> float:
        return self.pen.textlength(text, self.fonts[size]) / FINE

    def text(self, at: tuple[float, float], text: str, size: int, colour: str, anchor: str) -> None:
        self.pen.text((at[0] * FINE, at[1] * FINE), text, colour, self.fonts[size], anchor)

    def upright(self, middle: tuple[float, float], text: str) -> None:
        """Text read from below, its left edge and its centre at `middle`."""
        strip = Image.new("RGB", (int(self.wide(text, TEXT) * FINE) + 2, (TEXT + 6) * FINE), "white")
        ImageDraw.Draw(strip).text((0, 0), text, INK, self.fonts[TEXT])
        strip = strip.rotate(90, expand=True)
        self.paper.paste(strip, (int(middle[0] * FINE), int(middle[1] * FINE - strip.height / 2)))

    def box(self, corner: tuple[float, float], other: tuple[float, float], colour: str) -> None:
        self.pen.rectangle(
            (corner[0] * FINE, corner[1] * FINE, max(other[0], corner[0]) * FINE, other[1] * FINE), fill=colour
        )

    def dot(self, at: tuple[float, float], radius: float, colour: str) -> None:
        x, y, r = at[0] * FINE, at[1] * FINE, radius * FINE
        self.pen.ellipse((x - r - FINE, y - r - FINE, x + r + FINE, y + r + FINE), fill="white")
        self.pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: float = 1, dashed: bool = False) -> None:
        fine = [(x * FINE, y * FINE) for x, y in points]
        for piece in _dashes(fine, 8 * FINE) if dashed else [fine]:
            if len(piece) > 1:
                self.pen.line(piece, fill=colour, width=max(1, round(width * FINE)), joint="curve")

    def finish(self) -> Image.Image:
        size = self.paper.width * SHARP // FINE, self.paper.height * SHARP // FINE
        return self.paper.resize(size, Image.Resampling.LANCZOS)


def _dashes(points: list[tuple[float, float]], length: float) -> list[list[tuple[float, float]]]:
    """A line cut into pieces of `length`, every other left out (shorter)."""
    pieces, left, drawn = [[points[0]]], length, True
    for (x, y), (u, v) in pairwise(points):
        far = math.hypot(u - x, v - y)
        gone = 0.0
        while far - gone > left:
            gone += left
            spot = (x + (u - x) * gone / far, y + (v - y) * gone / far)
            if drawn:
                pieces[-1].append(spot)
            else:
                pieces.append([spot])
            drawn = not drawn
            left = length if drawn else length * 0.6
        left -= far - gone
        if drawn:
            pieces[-1].append((u, v))
    return pieces
