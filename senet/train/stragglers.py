"""Where the time of the ranks goes, and which of them hold up the others.

Ranks meet in every step, so all steps take as long as the slowest rank's. It is the one that does not wait: where the
others spend their time on communication, it waits for data or computes. What is left of a step without the wait for the
others is a rank's own work; who has clearly more of it than the median is slow, and its shares say why.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from statistics import median_low
from typing import Any

import torch
from torch import Tensor, nn

FACTOR = 1.3  # own work against the median
LOSS = 0.15  # and the share of each step that this costs
STEPS, SECONDS = 10, 3.0  # at least so long is looked at; less is chance
TWICE = 2  # looks in a row that find a rank slow, or no longer slow, before it is said
PENDING = 512  # micro-batches between two looks of which the times are kept

Mark = Any  # host seconds, or a CUDA event


@dataclass(frozen=True)
class Shares:
    """A rank's time in seconds, over some steps."""

    steps: int = 0
    data: float = 0.0
    compute: float = 0.0
    communication: float = 0.0

    def __add__(self, other: Shares) -> Shares:
        return Shares(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))

    @property
    def total(self) -> float:
        return self.data + self.compute + self.communication

    @property
    def own(self) -> float:
        return self.data + self.compute


class StepTimer:
    """Measures one rank. Costs three marks a micro-batch and waits for nothing; on a GPU the marks are events on its
    own time line.

    The gradient of the first layer is the last to come: what is left of the backward pass after it is waiting for other
    ranks.
    """

    def __init__(self, net: nn.Module, device: torch.device) -> None:
        # Refers to nothing of the run: the hook would keep it alive, and with it processes and threads, until the
        # interpreter ends.
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[Mark, Mark, Mark]] = []
        self._data = (0.0, 0.0)  # seconds waited for data before the first and after the last of them
        self._began: Mark = None
        self._computed: Mark = None
        self._sums = Shares()
        next(p for p in net.parameters() if p.requires_grad).register_post_accumulate_grad_hook(self._note_computed)

    def begin(self, waited: float) -> None:
        """A micro-batch begins, with its wait for data; `waited` is the loader's running total of such waits."""
        self._began = self._mark() if len(self._marks) < PENDING else None
        if not self._marks:
            self._data = (waited, 0.0)

    def end(self, waited: float) -> None:
        """Its backward pass has returned."""
        if self._began is not None and self._computed is not None:
            self._marks.append((self._began, self._computed, self._mark()))
            self._data = (self._data[0], waited)
        self._began = self._computed = None

    def pause(self) -> None:
        """What comes now, until the next `begin`, is no part of a step. Waits for the device."""
        if not self._marks:
            return
        last = self._marks[-1][2]
        if self._cuda:
            last.synchronize()
        total = self._between(self._marks[0][0], last)
        communication = sum(self._between(computed, end) for _, computed, end in self._marks)
        data = min(self._data[1] - self._data[0], total - communication)
        self._sums += Shares(len(self._marks), data, total - communication - data, communication)
        self._marks.clear()

    def lap(self) -> Shares:
        """The times since the last lap."""
        self.pause()
        sums, self._sums = self._sums, Shares()
        return sums

    def _note_computed(self, parameter: Tensor) -> None:
        if self._began is not None:
            self._computed = self._mark()

    def _mark(self) -> Mark:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, one: Mark, other: Mark) -> float:
        return one.elapsed_time(other) / 1000 if self._cuda else other - one


@dataclass(frozen=True)
class Change:
    """A rank turned slow, or (`over`) no longer is."""

    rank: int
    over: bool
    factor: float  # own work against the median rank's
    shares: Shares


class StragglerDetector:
    """Compares what all ranks measured. Alike on all of them, for it sees the same."""

    def __init__(self, ranks: int, steps: int = STEPS, seconds: float = SECONDS) -> None:
        self._steps, self._seconds = steps, seconds
        self._sums = [Shares()] * ranks
        self._slow: set[int] = set()
        self._row = [0] * ranks  # looks in a row that say otherwise than `_slow`

    def look(self, laps: list[Shares]) -> list[Change]:
        """What changed with one more lap of each rank."""
        self._sums = [before + lap for before, lap in zip(self._sums, laps, strict=True)]
        sums = self._sums
        if min(s.steps for s in sums) < self._steps or max(s.total for s in sums) < self._seconds:
            return []
        self._sums = [Shares()] * len(sums)
        usual = median_low(s.own for s in sums)
        changes = []
        for rank, s in enumerate(sums):
            slow = s.own > FACTOR * usual and s.own - usual > LOSS * s.total
            self._row[rank] = self._row[rank] + 1 if slow != (rank in self._slow) else 0
            if self._row[rank] == TWICE:
                self._row[rank] = 0
                self._slow ^= {rank}
                changes.append(Change(rank, not slow, s.own / max(usual, 1e-9), s))
        return changes


def record(change: Change, host: str) -> dict[str, Any]:
    """What the log says of it: shares of the time of its steps."""
    s = change.shares
    parts = {name: round(getattr(s, name) / max(s.total, 1e-9), 3) for name in ("data", "compute", "communication")}
    return {"slow_rank": change.rank, "host": host, "over": change.over, "factor": round(change.factor, 2), **parts}
