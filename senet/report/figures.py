"""The pictures of a report, each a PNG in memory."""

import io
from collections.abc import Sequence
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np

from senet.data.philox import Ints
from senet.plots import COLOURS, FAINT, INK, page
from senet.report.facts import RunFacts
from senet.report.paper import Quoted
from senet.report.summary import recipes
from senet.track.tracker import Record

MATRIX = 100  # classes of the largest confusion matrix that is drawn
NUMBERED = 12  # classes of the largest one with numbers in it
SMALL: Any = {"width": 5.2, "height": 3.6}


class Curve(NamedTuple):
    """How a run is drawn."""

    run: RunFacts
    colour: str
    label: str


def curves(runs: Sequence[RunFacts], paper: Quoted | None) -> dict[str, bytes]:
    """Draw errors, loss and learning rate, and speed over the epochs, as far as they were logged. The runs of a recipe
    have one colour.
    """
    coloured = [
        Curve(run, colour, run.label if len(group) == 1 else f"{name}, {len(group)} runs")
        for (name, group), colour in zip(recipes(runs), cycle(COLOURS), strict=False)
        for run in group
    ]
    drawn = {}
    if any(run.train or run.val for run in runs):
        drawn["errors"] = _errors(coloured, paper)
        drawn["loss"] = _pairs(coloured, "Loss and learning rate", ("loss", "learning_rate"))
        drawn["speed"] = _pairs(coloured, "Speed", ("images_per_second", "data_wait"))
    return drawn


def _errors(coloured: Sequence[Curve], paper: Quoted | None) -> bytes:
    picture = io.BytesIO()
    with page(picture, "Error", 2, "solid: validation, dashed: training (augmented images)", **SMALL) as panels:
        for axes, top in zip(panels, ("top1_error", "top5_error"), strict=True):
            if top == "top1_error" and paper and paper.val:
                for points, style, named in ((paper.val, "-", "the paper's, figure 4"), (paper.train, "--", None)):
                    axes.plot(*zip(*points, strict=True), style, color=FAINT, alpha=0.5, linewidth=4, label=named)
            quoted = {"top1_error": paper.top1_error, "top5_error": paper.top5_error}[top] if paper else None
            if quoted is not None:
                axes.axhline(quoted, color=FAINT, linewidth=1, linestyle=":", label=f"the paper's {quoted:g} %")
            for run, colour, label in coloured:
                thin: Any = {"color": colour, "linewidth": 1.2}
                _plot(axes, run, run.val, top, color=colour, label=label)
                _plot(axes, run, run.val, f"train_{top}", linestyle="--", **thin)
                _plot(axes, run, run.val, f"ema_{top}", linestyle="-.", label="average of the weights", **thin)
            _axes(axes, coloured, f"{top[:3]}-{top[3]} error, %")
            axes.set_ylim(bottom=0)
    return picture.getvalue()


def _pairs(coloured: Sequence[Curve], title: str, keys: tuple[str, str]) -> bytes:
    words = {"images_per_second": "training images per second", "data_wait": "share of time waiting for data"}
    note = "lines: training, dots: validation, without label smoothing" if "loss" in keys else ""
    picture = io.BytesIO()
    with page(picture, title, 2, note, **SMALL) as panels:
        for axes, key in zip(panels, keys, strict=True):
            for run, colour, label in coloured:
                _plot(axes, run, run.train, key, color=colour, label=label, linewidth=1.2)
                if key == "loss":
                    _plot(axes, run, run.val, key, color=colour, marker="o", linestyle="")
            _axes(axes, coloured, words.get(key, key.replace("_", " ")))
            if key != "loss":
                axes.set_ylim(bottom=0)
    return picture.getvalue()


def _plot(axes: Any, run: RunFacts, records: Sequence[Record], key: str, **style: Any) -> None:
    """Draw a figure of records over the epochs; what is not there or not finite is left out."""
    steps = run.steps_per_epoch or 1
    points = [(record["step"] / steps, record[key]) for record in records if record.get(key) is not None]
    if points:
        style = {"marker": "o" if len(points) == 1 else "", "markersize": 3.5} | style
        axes.plot(*zip(*points, strict=True), **style)


def _axes(axes: Any, coloured: Sequence[Curve], y: str) -> None:
    axes.set_ylabel(y)
    known = any(curve.run.steps_per_epoch for curve in coloured)
    axes.set_xlabel("epoch" if known else "step")
    if known:
        axes.set_xlim(0, 1.02 * max(curve.run.config.epochs for curve in coloured))
        axes.xaxis.get_major_locator().set_params(integer=True)
    handles, labels = axes.get_legend_handles_labels()
    shown = dict(zip(labels, handles, strict=True))  # each label once
    if len(shown) > 1:
        axes.legend(shown.values(), shown.keys(), loc="best")


def confusion(counts: Ints, classes: Sequence[str]) -> bytes:
    """Draw a confusion matrix [classes, classes]: a row is a class, its colours are shares of its images."""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = max(4.2, min(0.36 * len(classes) + 1.6, 11.0))
    picture = io.BytesIO()
    with page(picture, "Confusion", width=side + 0.8, height=side) as (axes,):
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.grid(visible=False)
        small: Any = {"fontsize": max(3.0, min(9.0, 280 / len(classes)))}
        axes.set_xticks(range(len(classes)), classes, rotation=90 if len(classes) > 5 else 0, color=INK, **small)
        axes.set_yticks(range(len(classes)), classes, color=INK, **small)
        axes.set_xlabel("taken for")
        axes.set_ylabel("class")
        for (row, column), count in np.ndenumerate(counts) if len(classes) <= NUMBERED else ():
            if count:
                ink = "white" if shares[row, column] > 0.5 else INK
                axes.text(column, row, f"{count:,}", ha="center", va="center", color=ink, fontsize=8)
    return picture.getvalue()
