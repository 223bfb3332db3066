"""How long one image takes one GPU: as measured by this project, by others, or as the nearest measured row says."""

from __future__ import annotations

import functools
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from senet import config
from senet.config import Bottleneck, Config
from senet.config.fields import Count, Positive
from senet.config.files import CONFIGS, nearest
from senet.errors import UsageError
from senet.plan.gpus import GPUS, device, find
from senet.plan.scale import FIXED, JITTER
from senet.plan.traffic import Stack, Traffic, itemsize, trace

FILE = Path(__file__).parent / "measured.yaml"
GOAL = 0.75  # of the roofline, for a stack that nobody measured
# How far off a rate may be, as a share: tests predict each measured row from itself, the others, or nothing within it.
MEASURED, MODELLED, GUESSED = 0.05, 0.25, 0.3
CALIBRATING = 100  # images a GPU: with fewer, a row of many GPUs says more of the fixed part of a step than of the net
# Seconds that the host needs for an operation forward and its two backward, assumed: eager PyTorch about 6 us a kernel,
# compiled code has a third fewer, CUDA graphs take 2 us. It bounds small nets and small batches.
LAUNCH: dict[Stack, float] = {
    "eager": 18e-6, "compiled": 12e-6, "analytic": 12e-6, "triton": 12e-6, "epilogue": 4e-6
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A rate that was measured: images/s of all `gpus`, with `batch` images on each."""

    source: str
    net: str  # a config under configs/
    gpu: str
    precision: Literal["fp32", "tf32", "bf16", "fp16"]
    stack: Stack
    batch: Count
    rate: Positive
    gpus: Count = 1


@dataclass(frozen=True)
class Rate:
    """The time of one GPU: `each` seconds an image, off by a share `doubt` at most, besides what no batch shortens. The
    host needs `floor` seconds a step at the least.
    """

    each: float
    doubt: float
    floor: float
    basis: str  # measured here, measured elsewhere, modelled ...
    said: str  # ... and from what
    fraction: float  # of the roofline

    def compute(self, batch: float) -> float:
        """Return the seconds of a step's part that grows with the batch."""
        return max(self.each * batch, self.floor)


@functools.cache
def rows(file: Path = FILE) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """Return what was measured by this project, and by others. Raises UsageError for a row that is wrong."""
    tree = yaml.safe_load(file.read_text())
    ours, others = (
        tuple(config.read(Row, row, f"{file}: row {row}") for row in tree[part] or []) for part in ("ours", "others")
    )
    for row in (*ours, *others):
        if row.gpu not in GPUS:
            raise UsageError(f"{file}: row {row}: gpu: no such GPU{nearest(row.gpu, GPUS)}")
    return ours, others


def traffic(settings: Config) -> Traffic:
    """Count what the config's net moves and multiplies for one image."""
    return trace(settings.net, settings.data.classes, settings.data.crop)


def rate(settings: Config, gpu: str, stack: Stack, file: Path = FILE) -> Rate:
    """Return the rate of a config's net on a GPU: measured if there are such rows, this project's before others';
    otherwise the net's roofline times the fraction that the nearest row of this stack reaches. Raises UsageError.
    """
    find(gpu)
    gpu, seen, size = gpu.lower(), traffic(settings), itemsize(settings.precision)
    best = seen.seconds(stack, device(gpu, settings.precision), size)
    floor = seen.operations * LAUNCH[stack]
    ours, others = rows(file)
    for basis, known in (("measured here", ours), ("measured elsewhere", others)):
        if same := _telling([row for row in known if matches(row, settings, gpu, stack)]):
            each = statistics.geometric_mean(_each(row) for row in same)
            measured = (f"{row.source}: {row.rate:,.0f} images/s on {row.gpus} with {row.batch} each" for row in same)
            return Rate(each, MEASURED, floor, basis, "; ".join(measured), best / each)
    alike = [row for row in (*ours, *others) if row.stack == stack and itemsize(row.precision) == size]
    fraction, doubt, said = GOAL, GUESSED, f"{GOAL:.2f} of the roofline, a goal: nobody measured such a stack"
    if alike:
        near = min(_telling(alike), key=lambda row: _distance(row, settings, gpu))
        theirs = traffic(_load(near.net)).seconds(stack, device(near.gpu, near.precision), size)
        fraction, doubt = theirs / _each(near), MODELLED
        said = f"{fraction:.2f} of the roofline, as {near.source} has it of {near.net} on {near.gpu.upper()}"
    return Rate(best / fraction, doubt, floor, "modelled", said, fraction)


def matches(row: Row, settings: Config, gpu: str, stack: Stack) -> bool:
    """Return whether a row is of this net, at this crop, on this GPU, in this stack and an equally wide precision."""
    if (row.gpu, row.stack, itemsize(row.precision)) != (gpu, stack, itemsize(settings.precision)):
        return False
    theirs = _load(row.net)
    return theirs.net == settings.net and theirs.data.crop == settings.data.crop


def _telling(known: list[Row]) -> list[Row]:
    """Return the rows of one GPU; without any, those of many with large batches, of which little else counts."""
    return [row for row in known if row.gpus == 1] or [row for row in known if row.batch >= CALIBRATING]


def _distance(row: Row, settings: Config, gpu: str) -> float:
    """Say how far a row is from a net on a GPU. Another GPU is farther than another net, and a card without a fast link
    farther than that: such cards come nearer to their slower memory's roofline.
    """

    def kind(of: Config) -> tuple[bool, bool]:
        return getattr(of.net, "se", None) is not None, isinstance(of.net, Bottleneck) and of.net.groups > 1

    theirs, own = _load(row.net), find(gpu)
    apart = abs(math.log(traffic(theirs).bytes("eager") / traffic(settings).bytes("eager")))
    apart += 0.5 * sum(one != other for one, other in zip(kind(theirs), kind(settings), strict=True))
    if row.gpu != gpu:
        apart += 2 + abs(math.log(GPUS[row.gpu].bandwidth / own.bandwidth))
        apart += 4 * ((GPUS[row.gpu].link > 100) != (own.link > 100))
    return apart


def _each(row: Row) -> float:
    """Return the seconds an image takes in a measured row, without what a step takes besides."""
    step = row.batch * row.gpus / row.rate / (1 + JITTER * math.sqrt(2 * math.log(row.gpus)))
    return max(step - FIXED, 0.5 * step) / row.batch


@functools.cache
def _load(net: str) -> Config:
    return config.load(CONFIGS / net)
