"""The one timing engine: it times ways of doing the same work in turns, so that a slow minute of the machine meets all
of them. The benches, `--tune` and `launch.doctor --speed` use it.
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
from types import FrameType
from typing import NoReturn

import torch

MOST = 1000  # steps in one round

Step = Callable[[], object]  # does one step of the work; it may return before the device is done


@dataclass(frozen=True)
class Spread:
    """Median, least and greatest of `n` values."""

    median: float
    low: float
    high: float
    n: int = 1

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise at least one value."""
        return cls(statistics.median(values), min(values), max(values), len(values))

    def __str__(self) -> str:
        """Print `0.96 (0.95-0.98)`; a single value without its range."""
        middle, low, high = (_digits(value) for value in (self.median, self.low, self.high))
        return f"{middle} ({low}-{high})" if self.n > 1 else middle


@dataclass
class Timing:
    """What became of one contestant: seconds and CPU-seconds of a step, one value for each round, or a failure."""

    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)  # of this process, all its threads
    first: float = 0.0  # seconds until the first step was done: building, compiling, choosing algorithms
    memory: int = 0  # bytes on the GPU that it needs: what it keeps, and the peak of a step
    failure: str | None = None

    @property
    def median(self) -> float:
        """Median seconds of a step; infinite if it was not timed."""
        return statistics.median(self.seconds) if self.seconds else math.inf

    def rate(self, images: int) -> Spread | None:
        """Images per second if a step takes `images`; None if it was not timed."""
        return Spread.of([images / seconds for seconds in self.seconds]) if self.seconds else None


@dataclass(frozen=True)
class Effort:
    """How long to time. Rounds end when there were `rounds` of them and they have taken `total` seconds."""

    rounds: int = 5
    seconds: float = 1.0  # about, of each contestant in each round
    steps: int | None = None  # of each contestant in each round; None: as many as fill `seconds`
    warmup: int = 3  # steps before the first round, besides the very first
    total: float = 0.0
    behind: float = math.inf  # times the fastest: a contestant slower than that after a round is timed no more
    deadline: float = math.inf  # of time.monotonic(): what is not warm in time for its rounds is left out


def interleave(
    makers: Mapping[str, Callable[[], Step]], effort: Effort, note: Callable[[str], object] = lambda turn: None
) -> Iterator[dict[str, Timing]]:
    """Build each contestant, then time all of them in turns; yield the timings so far after each round, at least once.

    Each round begins with another contestant. One that fails (out of memory, a compiler's error, no time left) is left
    out with the reason, and costs the others nothing. `note` is told what is done with whom before each turn.
    """
    timings = {name: Timing() for name in makers}
    made: dict[str, Step] = {}
    counts: dict[str, int] = {}
    warm_by = effort.deadline - effort.rounds * effort.seconds * len(makers)

    def attempt(turn: str, name: str, act: Callable[[str], None], deadline: float) -> None:
        note(f"{turn} {name}")
        try:
            with until(deadline):
                act(name)
        except Exception as error:
            timings[name].failure = reason(error)
        if timings[name].failure:  # outside of the handler, where the traceback holds the tensors of its frames no more
            made.pop(name, None)
            gc.unfreeze()
            free()

    def make(name: str) -> None:
        before, began = _allocated(), time.perf_counter()
        made[name] = makers[name]()
        timings[name].memory, timings[name].first = _allocated() - before, time.perf_counter() - began

    def warm(name: str) -> None:
        before = _allocated()
        timings[name].first += timed(made[name])[0]
        for _ in range(effort.warmup):
            made[name]()
        each = timed(made[name], 2)[0]
        timings[name].memory += _allocated() - before
        counts[name] = effort.steps or max(1, min(MOST, math.ceil(effort.seconds / each)))

    def round_of(name: str) -> None:
        at_rest = _allocated()
        if first := torch.cuda.is_initialized() and not timings[name].seconds:
            torch.cuda.reset_peak_memory_stats()
        seconds, cpu = timed(made[name], counts[name])
        timings[name].seconds.append(seconds)
        timings[name].cpu.append(cpu)
        if first:
            timings[name].memory += torch.cuda.max_memory_allocated() - at_rest

    # All are made before the first is compiled: making one empties the compiler's tables.
    for name in makers:
        attempt("building", name, make, warm_by)
    for name in list(made):
        attempt("compiling", name, warm, warm_by)
    began, number, running = time.monotonic(), 0, list(made)
    try:
        while running and (number < effort.rounds or time.monotonic() - began < effort.total):
            if number and (time.monotonic() > effort.deadline or (len(running) < 2 and effort.behind < math.inf)):
                break
            gc.freeze()  # so that a collection looks at what the round made, and at nothing else
            start = number % len(running)
            for name in running[start:] + running[:start]:
                attempt("timing", name, round_of, math.inf)
            best = min(timings[name].median for name in running)
            running = [name for name in running if name in made and timings[name].median <= effort.behind * best]
            number += 1
            yield timings
    finally:
        gc.unfreeze()
    if not number:
        yield timings


def measure(makers: Mapping[str, Callable[[], Step]], effort: Effort) -> dict[str, Timing]:
    """Time contestants as `interleave` does, to the end."""
    *_, last = interleave(makers, effort)
    return last


def timed(step: Step, count: int = 1) -> tuple[float, float]:
    """Seconds and CPU-seconds of a step, the mean of `count` in a row, from an idle device to an idle device."""
    synchronise()
    began, cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        step()
    synchronise()
    return (time.perf_counter() - began) / count, (time.process_time() - cpu) / count


def ratios(ours: Timing, theirs: Timing) -> Spread | None:
    """How many times as fast `ours` is, from pairs of the same round; None if one of them was not timed."""
    if ours.failure or theirs.failure or not ours.seconds or not theirs.seconds:
        return None
    return Spread.of([other / own for own, other in zip(ours.seconds, theirs.seconds, strict=False)])


def synchronise() -> None:
    """Wait until this process's GPU, if it uses one, has done all it was asked to: timing must begin and end so."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def free() -> None:
    """Give back the device's memory that nets and trainers held: they are in cycles, with their hooks and graphs."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def reason(error: BaseException) -> str:
    """Say in one line what failed."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first[:200]}"


class Late(Exception):
    """No time was left."""


@contextmanager
def until(deadline: float) -> Iterator[None]:
    """Raise Late at `deadline` in what runs inside, a compiler say. It nests, and needs the main thread."""
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


def _allocated() -> int:
    return torch.cuda.memory_allocated() if torch.cuda.is_initialized() else 0


def _digits(value: float) -> str:
    """Three significant digits."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"
