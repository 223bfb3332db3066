"""How long one image takes one GPU: measured by this project, by others, or their fraction of the roofline carried over
to another net.
"""

from __future__ import annotations

import functools
import math
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import yaml

from senet import config
from senet.config import Bottleneck, Config, Net
from senet.errors import UsageError
from senet.plan.gpus import GPUS, device, find
from senet.plan.scale import FIXED, JITTER
from senet.plan.traffic import Stack, Traffic, itemsize, trace

FILE = Path(__file__).parent / "measured.yaml"
CONFIGS = Path(__file__).parent.parent.parent / "configs"
GOAL, GOAL_SPREAD = 0.75, 0.13  # of the roofline, and as a share of it, where nobody measured such a stack
CALIBRATING = 100  # images a GPU: below that a row of many GPUs tells more of the fixed part than of the net
LAUNCH: dict[Stack, float] = {
    "eager": 3 * 6e-6,
    "compiled": 2 * 6e-6,
    "analytic": 2 * 6e-6,
    "triton": 2 * 6e-6,
    "epilogue": 2 * 2e-6,
}
"""Seconds that the host needs for one operation of the forward pass and its two backward: PyTorch about 6 us a kernel,
Inductor has a third fewer, CUDA graphs take 2 us. Assumed. It bounds small nets and small batches.
"""


@dataclass(frozen=True)
class Row:
    """A rate that was measured. `rate` is of all `gpus`, `batch` of one."""

    source: str
    net: str
    gpu: str
    precision: Literal["fp32", "bf16", "fp16"]
    stack: Stack
    batch: int
    rate: float
    gpus: int = 1


@dataclass(frozen=True)
class Rate:
    """One image takes one GPU `each` seconds, more or less a share `spread`; a step takes it `fixed` more, and never
    less than `floor`.
    """

    each: float
    spread: float
    fixed: float
    floor: float
    basis: str  # measured here, measured elsewhere, modelled ...
    said: str  # ... and from what
    fraction: float  # of the roofline

    def compute(self, batch: float) -> float:
        """Seconds of a step's part that grows with the batch."""
        return max(self.each * batch, self.floor)


@functools.cache
def rows(file: Path = FILE) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """Measured by this project, and by others. Raises UsageError."""
    try:
        tree = yaml.safe_load(file.read_text())
        ours, others = (
            tuple(config.read(Row, row, f"{file}: row {row}") for row in tree[part] or [])
            for part in ("ours", "others")
        )
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise UsageError(
            f"{file}: cannot be read ({type(error).__name__}: {error}); it is part of this project, restore it"
        ) from None
    for row in (*ours, *others):
        if row.gpu not in GPUS or row.rate <= 0 or row.batch < 1 or row.gpus < 1:
            raise UsageError(f"{file}: {row}: no such GPU, or a number out of range; known: {', '.join(GPUS)}")
    return ours, others


def traffic(settings: Config) -> Traffic:
    return trace(settings.net, settings.data.classes, settings.data.crop)


def _settings(row: Row) -> Config:
    return _load(row.net)


@functools.cache
def _load(net: str) -> Config:
    return config.load(CONFIGS / net)


def roofline(seen: Traffic, gpu: str, precision: str, stack: Stack) -> float:
    """Seconds an image takes at the least."""
    return seen.seconds(stack, device(gpu, precision), itemsize(precision))


def _each(row: Row) -> float:
    """Seconds an image of a measured row, without what a step takes besides."""
    step = row.batch * row.gpus / row.rate / (1 + JITTER * math.sqrt(2 * math.log(row.gpus)))
    return max(step - FIXED, 0.5 * step) / row.batch


def _kin(net: Net) -> Net:
    """Nets that differ in where they stride are alike in speed, relative to their rooflines."""
    return replace(net, stride_at="conv1x1") if isinstance(net, Bottleneck) else net


def rate(settings: Config, gpu: str, stack: Stack, file: Path = FILE) -> Rate:
    """Of a config's net on a GPU. Raises UsageError."""
    find(gpu)
    gpu, seen = gpu.lower(), traffic(settings)
    best = roofline(seen, gpu, settings.precision, stack)
    floor = seen.operations * LAUNCH[stack]
    ours, others = rows(file)
    for basis, known in (("measured here", ours), ("measured elsewhere", others)):
        same = _telling([row for row in known if matches(row, settings, gpu, stack)])
        if same:
            each = statistics.geometric_mean(_each(row) for row in same)
            told = "; ".join(
                f"{row.source}: {row.rate:,.0f} images/s on {row.gpus} with {row.batch} each" for row in same
            )
            return Rate(each, 0.05, FIXED, floor, basis, told, best / each)
    alike = [
        row
        for row in (*ours, *others)
        if row.stack == stack and itemsize(row.precision) == itemsize(settings.precision)
    ]
    fraction, spread, told = _fraction(settings.net, gpu, _telling(alike))
    return Rate(best / fraction, spread, FIXED, floor, "modelled", told, fraction)


def matches(row: Row, settings: Config, gpu: str, stack: Stack) -> bool:
    if (row.gpu, row.stack, itemsize(row.precision)) != (gpu, stack, itemsize(settings.precision)):
        return False
    theirs = _settings(row)
    return theirs.net == settings.net and theirs.data.crop == settings.data.crop


def _telling(known: list[Row]) -> list[Row]:
    """The rows that tell of one GPU: its own, else those of many with large batches, where the rest of a step counts
    little.
    """
    return [row for row in known if row.gpus == 1] or [row for row in known if row.batch >= CALIBRATING]


def _fraction(net: Net, gpu: str, known: list[Row]) -> tuple[float, float, str]:
    """The fraction of the roofline to expect, its spread as a share, and what it rests on.

    Fractions of measured rows are taken apart into an effect of the net and one of the GPU (their logarithms add up, by
    least squares); a net or GPU that nobody measured gets the mean effect, and the spread of the effects, at least that
    of a goal, is its doubt. Cards without a fast link do better than those with, at a slower memory: they count only
    where no other does.
    """
    serious = [row for row in known if GPUS[row.gpu].link > 100 or GPUS[gpu].link <= 100]
    if not serious:
        return GOAL, GOAL_SPREAD, f"{GOAL:.2f} of the roofline, a goal: nobody measured such a stack"
    logs = [(_kin(_settings(row).net), row.gpu, math.log(_roof(row) / _each(row))) for row in known]
    nets, devices = dict.fromkeys((n for n, _, _ in logs), 0.0), dict.fromkeys((g for _, g, _ in logs), 0.0)
    for _ in range(50):
        for name in nets:
            nets[name] = statistics.mean(f - devices[g] for n, g, f in logs if n == name)
        for name_ in devices:
            devices[name_] = statistics.mean(f - nets[n] for n, g, f in logs if g == name_)
    doubt = statistics.pvariance([f - nets[n] - devices[g] for n, g, f in logs])
    if gpu not in devices:
        effects = [effect for name_, effect in devices.items() if any(row.gpu == name_ for row in serious)]
        devices[gpu] = statistics.mean(effects)
        doubt += max(statistics.pvariance(effects), GOAL_SPREAD**2)
    if _kin(net) not in nets:
        doubt += max(statistics.pvariance(nets.values()), GOAL_SPREAD**2)
    fraction = math.exp(nets.get(_kin(net), statistics.mean(nets.values())) + devices[gpu])
    sources = ", ".join(dict.fromkeys(row.source.partition(",")[0] for row in known))
    return (
        fraction,
        max(0.05, math.sqrt(doubt)),
        f"{fraction:.2f} of the roofline, from {len(known)} rates of {sources}",
    )


def _roof(row: Row) -> float:
    return roofline(traffic(_settings(row)), row.gpu, row.precision, row.stack)
