"""Charts in one style, drawn by matplotlib: `page` opens one, matplotlib's own Axes or the functions here draw on it.

Import this module inside of the function that draws: matplotlib takes longer to import than most commands take to run.
"""

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import matplotlib
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullFormatter

from senet.errors import UsageError

# Okabe and Ito's colours, which colour-blind people tell apart as well.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
INK, FAINT, GRID = "#222222", "#6b6b6b", "#e4e4e4"
STYLE: Any = {
    "font.family": "DejaVu Sans",  # matplotlib brings it, so a page looks the same on any machine
    "font.size": 10,
    "text.color": INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "savefig.dpi": 160,
}


@dataclass(frozen=True)
class Line:
    label: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False
    dots: bool = False  # dots alone: what was measured, beside what is modelled


@dataclass(frozen=True)
class Bar:
    """One bar. Neighbours of the same label stand together; `group` chooses the colour and is named in the legend."""

    label: str
    value: float | None  # None: not measured
    group: str = ""
    low: float | None = None  # with `high`: the range of the value
    high: float | None = None
    limit: float | None = None  # a mark of what would be possible


@contextmanager
def page(
    file: Path | IO[bytes],
    title: str,
    panels: int = 1,
    note: str = "",
    width: float = 7.5,
    height: float = 4.8,
    columns: int | None = None,
) -> Iterator[list[Axes]]:
    """Open a page of `panels`, each `width` by `height` inches, in rows of `columns`, by default in one; write it to
    `file` when the block ends well.

    The ending of the name (.png, .svg, .pdf) says the format; an open binary file gets a PNG. Global settings of
    matplotlib stay as they are. Raises UsageError if the file cannot be written.
    """
    with matplotlib.rc_context(STYLE):
        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
        across = min(columns or panels, panels)
        down = -(-panels // across)
        figure = Figure(figsize=(width * across, height * down), layout=layout)
        left = 0.12 / (width * across)
        figure.suptitle(title, x=left, ha="left", fontsize=13)
        if note:
            figure.supxlabel(note, x=left, ha="left", fontsize=8, color=FAINT)
        every = list(figure.subplots(down, across, squeeze=False).flat)
        for unused in every[panels:]:
            unused.remove()
        yield every[:panels]
        try:
            figure.savefig(file, format=None if isinstance(file, Path) else "png")
        except (OSError, ValueError) as error:
            raise UsageError(f"{file}: cannot be written: {error}; name a .png file in a folder that exists") from None


def lines(
    axes: Axes, series: Sequence[Line], x: str, y: str, log_x: int | None = None, log_y: int | None = None
) -> None:
    """Draw `series` over axes named `x` and `y`, linear or logarithmic to a base. Raises ValueError for no points."""
    if not any(line.points for line in series):
        raise ValueError(f"{y}: no points to draw")
    for line in series:
        across, up = zip(*sorted(line.points), strict=True) if line.points else ((), ())
        style: Any = {
            "marker": "o" if len(across) <= 16 and not line.dashed else "",
            "ls": "--" if line.dashed else "-",
        }
        if line.dots:
            style = {"marker": "o", "ls": "", "markersize": 8, "markeredgecolor": "white", "color": INK, "zorder": 3}
        axes.plot(across, up, label=line.label, **style)
    for scale, axis, base in ((axes.set_xscale, axes.xaxis, log_x), (axes.set_yscale, axes.yaxis, log_y)):
        if base is not None:
            scale("log", base=base)
        axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if len(series) > 1:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(series), borderaxespad=0.2, columnspacing=1.2)


def bars(axes: Axes, rows: Sequence[Bar], x: str) -> None:
    """Draw horizontal bars from zero in the order given, and make the page as high as they need."""
    groups = list(dict.fromkeys(bar.group for bar in rows))
    longest = max((value or 0.0 for bar in rows for value in (bar.value, bar.high, bar.limit)), default=0.0) or 1.0
    places: dict[str, list[float]] = {}  # of the bars of each label
    at, before = 0.0, None
    for bar in rows:
        at += 1.0 if before in (None, bar.label) else 1.6
        before = bar.label
        places.setdefault(bar.label, []).append(at)
        value, colour = bar.value or 0.0, COLOURS[groups.index(bar.group) % len(COLOURS)]
        axes.barh(at, value, 0.84, color=colour)
        if bar.low is not None and bar.high is not None:
            error = [[value - bar.low], [bar.high - value]]
            axes.errorbar(value, at, xerr=error, color=INK, capsize=2.5, linewidth=1)
        end = max(value, bar.high or 0.0)
        if bar.limit is not None:
            axes.plot([bar.limit, bar.limit], [at - 0.48, at + 0.48], color=INK, linewidth=2)
            if end - 0.01 * longest < bar.limit < end + 0.1 * longest:
                end = bar.limit  # the mark would go through the text
        text, ink = ("not measured", FAINT) if bar.value is None else (number(bar.value), INK)
        axes.text(end + 0.012 * longest, at, text, va="center", fontsize=8.5, color=ink)
    axes.set_yticks([statistics.mean(own) for own in places.values()], list(places), color=INK)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_ylim(at + 0.8, 0.2)
    axes.set_xlim(0, 1.12 * longest)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axes.set_xlabel(x)
    figure = axes.get_figure(root=True)
    assert figure is not None
    if any(groups):
        handles = [Patch(color=COLOURS[i % len(COLOURS)], label=group) for i, group in enumerate(groups)]
        axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(groups), handlelength=1.2)
    figure.set_size_inches(figure.get_size_inches()[0], 1.6 + 0.24 * at)


def number(value: float) -> str:
    """Write three digits and a suffix: 0.95, 950, 1,250, 64k, 2.1M."""
    for size, suffix, least in ((1e9, "G", 999.5e6), (1e6, "M", 999.5e3), (1e3, "k", 1e4)):
        if abs(value) >= least:
            return f"{value / size:.3g}{suffix}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
