"""Times of things that do the same work in different ways, taken in turns, so that a slow minute of the machine meets
all of them.
"""

from __future__ import annotations

import gc
import math
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import FrameType
from typing import NoReturn

import torch

from senet.distributed import synchronise

Step = Callable[[], object]  # one training step; it may return before the device is done


@dataclass(frozen=True)
class Spread:
    """Median, least and greatest of `n` rounds."""

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values), len(values))

    def text(self, digits: int = 3) -> str:
        """`0.96 (0.95-0.98)`."""
        middle, low, high = (_round(value, digits) for value in (self.median, self.low, self.high))
        return f"{middle} ({low}-{high})" if self.n > 1 else middle


@dataclass
class Timing:
    """Seconds and CPU-seconds of a step, a value for each round, or why there are none."""

    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    memory: int = 0  # bytes on the GPU that a step needs, net and optimiser included
    first: float = 0.0  # seconds until the first step was done: building, compiling, choosing algorithms
    failure: str | None = None

    def rate(self, images: int) -> Spread:
        """Images a second, `images` a step."""
        return Spread.of([images / seconds for seconds in self.seconds])


@dataclass
class Effort:
    rounds: int = 5
    seconds: float = 1.0  # about, of each contestant in each round
    warmup: int = 3  # steps before the first round, besides the very first
    deadline: float = (
        math.inf
    )  # of time.monotonic(): contestants not built in time for their rounds are left out, rounds after it too


def interleave(makers: Mapping[str, Callable[[], Step]], device: torch.device, effort: Effort) -> dict[str, Timing]:
    """Build each contestant, then time all of them in turns, beginning each round with another one.

    One that fails (out of memory, a compiler's error) is left out of the rounds, with its reason, and costs the others
    nothing.
    """
    made: dict[str, Step] = {}
    steps: dict[str, tuple[Step, int]] = {}
    found = {name: Timing() for name in makers}
    built_by = effort.deadline - effort.rounds * effort.seconds * len(makers)

    def attempt(name: str, act: Callable[[], None]) -> None:
        try:
            with until(built_by):
                act()
        except Exception as error:
            found[name].failure = reason(error)
            made.pop(name, None)
            del error
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()

    def make(name: str) -> None:
        before, began = _allocated(device), time.perf_counter()
        made[name] = makers[name]()
        found[name].memory, found[name].first = _allocated(device) - before, time.perf_counter() - began

    def warm(name: str) -> None:
        steps[name] = made[name], _warm(made[name], found[name], device, effort)

    # All are made before the first is compiled: making one empties the compiler's tables.
    for name in makers:
        attempt(name, partial(make, name))
    for name in list(made):
        attempt(name, partial(warm, name))
    names = list(steps)
    for number in range(effort.rounds):
        if number and time.monotonic() > effort.deadline:
            break
        for name in names[number % max(len(names), 1) :] + names[: number % max(len(names), 1)]:
            step, count = steps[name]
            if found[name].failure is None:
                try:
                    _round_of(step, count, found[name], device, first=number == 0)
                except Exception as error:
                    found[name].failure = reason(error)
    return found


class Late(Exception):
    """No time was left."""


@contextmanager
def until(deadline: float) -> Iterator[None]:
    """Raise Late in what runs at `deadline`, a compiler say, which cannot be asked to be quick."""
    if deadline == math.inf:
        yield
        return

    def late(number: int, frame: FrameType | None) -> NoReturn:
        raise Late("no time was left")

    if (left := deadline - time.monotonic()) <= 0:
        raise Late("no time was left")
    before = signal.signal(signal.SIGALRM, late)
    outer, _ = signal.getitimer(signal.ITIMER_REAL)
    signal.setitimer(signal.ITIMER_REAL, min(left, outer or left))
    began = time.monotonic()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, max(outer - (time.monotonic() - began), 1e-3) if outer else 0)
        signal.signal(signal.SIGALRM, before)


def _warm(step: Step, timing: Timing, device: torch.device, effort: Effort) -> int:
    """Make the first steps; how many make a round."""
    before, began = _allocated(device), time.perf_counter()
    step()
    synchronise()
    timing.first += time.perf_counter() - began
    for _ in range(effort.warmup):
        step()
    synchronise()
    began = time.perf_counter()
    step()
    step()
    synchronise()
    each = (time.perf_counter() - began) / 2
    timing.memory += _allocated(device) - before
    return max(1, math.ceil(effort.seconds / each))


def _round_of(step: Step, count: int, timing: Timing, device: torch.device, first: bool) -> None:
    at_rest = _allocated(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    synchronise()
    began, cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        step()
    synchronise()
    timing.seconds.append((time.perf_counter() - began) / count)
    timing.cpu.append((time.process_time() - cpu) / count)
    if first and device.type == "cuda":
        timing.memory += torch.cuda.max_memory_allocated(device) - at_rest


def ratios(ours: Timing, theirs: Timing) -> Spread | None:
    """How many times as fast ours is, from pairs of the same round; None where one of the two was not measured."""
    if ours.failure or theirs.failure or not ours.seconds or not theirs.seconds:
        return None
    return Spread.of([other / own for own, other in zip(ours.seconds, theirs.seconds, strict=True)])


def reason(error: BaseException) -> str:
    """One line of an error."""
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first.strip()[:200]}"


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def _round(value: float, digits: int) -> str:
    if value == 0 or abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"
