"""Charts show what they are given, by name and to scale, and leave matplotlib's own settings as they were."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
from matplotlib.patches import Rectangle
from PIL import Image

from senet.errors import UsageError
from senet.plots import COLOURS, Bar, Line, bars, lines, number, page
from tests.helpers import ROOT


def test_bars_are_as_long_as_their_values_and_named() -> None:
    rows = [
        Bar("a", 100, "first"),
        Bar("a", 50, "second"),
        Bar("b", None, "first"),
        Bar("b", 25, "third", low=20, high=30, limit=110),
    ]
    picture = io.BytesIO()
    with page(picture, "title", note="note") as (axes,):
        bars(axes, rows, "images per second")
    drawn = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert [patch.get_width() for patch in drawn] == [100, 50, 0, 25]
    assert [matplotlib.colors.to_hex(patch.get_facecolor()).upper() for patch in drawn] == [
        COLOURS[index] for index in (0, 1, 0, 2)
    ]
    assert [text.get_text() for text in axes.texts] == ["100", "50", "not measured", "25"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert [tuple(line.get_xdata()) for line in axes.lines][-1] == (110, 110)
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["first", "second", "third"]
    with Image.open(picture) as read:
        assert read.format == "PNG"
        assert read.width > 1000


def test_lines_are_sorted_marked_and_scaled(tmp_path: Path) -> None:
    measured = Line("measured", [(8, 50), (2, 10)], dots=True)
    with page(tmp_path / "page.png", "title", panels=2) as (left, right):
        lines(left, [Line("modelled", [(1, 5), (16, 90)], dashed=True), measured], "GPUs", "images/s", 2, 10)
        lines(right, [Line("alone", [(0, 1), (1, 2)])], "epoch", "error")
    modelled, dots = left.lines
    assert list(dots.get_xdata()) == [2, 8]
    assert (modelled.get_linestyle(), dots.get_linestyle(), dots.get_marker()) == ("--", "None", "o")
    assert (left.get_xscale(), left.get_yscale(), right.get_xscale()) == ("log", "log", "linear")
    assert (left.get_xlabel(), left.get_ylabel()) == ("GPUs", "images/s")
    assert right.get_legend() is None
    with Image.open(tmp_path / "page.png") as read:
        assert read.width > 2 * read.height


def test_what_cannot_be_drawn_or_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no points to draw"), page(tmp_path / "empty.png", "") as (axes,):
        lines(axes, [Line("a", [])], "x", "y")
    assert not (tmp_path / "empty.png").exists()
    for name in ("nowhere/page.png", "page.docx"):
        refusal = pytest.raises(UsageError, match=r"name a \.png file in a folder that exists")
        with refusal, page(tmp_path / name, "") as (axes,):
            lines(axes, [Line("a", [(0, 1)])], "x", "y")


def test_settings_of_matplotlib_stay() -> None:
    before = dict(matplotlib.rcParams)
    with page(io.BytesIO(), "") as (axes,):
        lines(axes, [Line("a", [(0, 1)])], "x", "y")
    assert dict(matplotlib.rcParams) == before


SCRIPT = """
import sys
from launch import bench, plan
plan.main(["--explain"])
plan.main(["cifar10/se_resnet20", "--gpus", "8"])
assert "matplotlib" not in sys.modules
import senet.plots
assert "matplotlib.pyplot" not in sys.modules
"""


def test_matplotlib_is_imported_only_to_draw() -> None:
    subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def test_numbers_are_short() -> None:
    written = [number(value) for value in (0, 0.25, 999, 2048, 10_000, 12_500, 999_900, 6.88e6, 1.5e9)]
    assert written == ["0", "0.25", "999", "2,048", "10k", "12.5k", "1M", "6.88M", "1.5G"]
