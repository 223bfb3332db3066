"""Where the time of the ranks goes, and which of them hold up the others.

Ranks meet in every step, so all steps take as long as the slowest rank's. That rank is the one that does not wait:
while the others spend their time on communication, it waits for data or computes. What is left of a step without the
waiting for others is a rank's own work; a rank that has clearly more of it than the median is slow, and the parts of
its work say why.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from statistics import median_low
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from senet.train.hooks import Hooks

if TYPE_CHECKING:
    from senet.train.trainer import Trainer

FACTOR = 1.3  # own work against the median
LOSS = 0.15  # and the share of each step that this costs
STEPS, SECONDS = 10, 3.0  # at least so much is compared; less is chance
TWICE = 2  # comparisons in a row that find a rank slow, or no longer slow, before it is reported
PENDING = 512  # micro-batches between two readings whose times are kept

PARTS = ("data", "compute", "communication")

Mark = Any  # host seconds, or a CUDA event


@dataclass(frozen=True)
class Times:
    """Seconds that a rank spent, over some micro-batches."""

    steps: int = 0
    data: float = 0.0
    compute: float = 0.0
    communication: float = 0.0

    def __add__(self, other: Times) -> Times:
        return Times(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def total(self) -> float:
        return self.data + self.compute + self.communication

    @property
    def own(self) -> float:
        return self.data + self.compute


class StepTimer(Hooks):
    """Times the steps of one rank. Costs three marks a micro-batch and waits for nothing; on a GPU the marks are events
    on its own time line.

    The gradient of the first layer is the last to be computed: what is left of the backward pass after it is waiting
    for other ranks.
    """

    def __init__(self) -> None:
        self._marks: list[tuple[Mark, Mark, Mark]] = []
        self._waited = (0.0, 0.0)  # the loader's total before the first of them and after the last
        self._began: Mark = None
        self._computed: Mark = None
        self._times = Times()
        self._cuda = False

    def attach(self, trainer: Trainer) -> None:
        self.watch(trainer.parameters[0])

    def watch(self, first: nn.Parameter) -> None:
        """Take the gradient of `first` for the last to be computed."""
        # The hook refers to nothing of the run: it would keep processes and threads alive until the interpreter ends.
        self._cuda = first.is_cuda
        first.register_post_accumulate_grad_hook(self._mark_computed)

    def before_data(self, step: int, waited: float) -> None:
        self._began = self._mark() if len(self._marks) < PENDING else None
        if not self._marks:
            self._waited = (waited, 0.0)

    def after_compute(self, step: int, waited: float) -> None:
        if self._began is not None and self._computed is not None:
            self._marks.append((self._began, self._computed, self._mark()))
            self._waited = (self._waited[0], waited)
        self._began = self._computed = None

    def pause(self) -> None:
        """Add up what was marked. Waits for the device."""
        if not self._marks:
            return
        last = self._marks[-1][2]
        if self._cuda:
            last.synchronize()
        total = self._between(self._marks[0][0], last)
        communication = sum(self._between(computed, end) for _, computed, end in self._marks)
        data = min(self._waited[1] - self._waited[0], total - communication)
        self._times += Times(len(self._marks), data, total - communication - data, communication)
        self._marks.clear()

    def read(self) -> Times:
        """Return the times since the last reading. Waits for the device."""
        self.pause()
        times, self._times = self._times, Times()
        return times

    def _mark_computed(self, parameter: Tensor) -> None:
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


class StragglerDetector:
    """Compares the times of all ranks. It comes to the same result on each of them, for it sees the same times."""

    def __init__(self, hosts: Sequence[str], steps: int = STEPS, seconds: float = SECONDS) -> None:
        """`hosts` by rank; at least so many `steps` and `seconds` are compared."""
        self.hosts = hosts
        self._steps, self._seconds = steps, seconds
        self._sums = [Times()] * len(hosts)
        self._slow: set[int] = set()
        self._contradictions = [0] * len(hosts)  # comparisons in a row that say otherwise than `_slow`

    def compare(self, readings: list[Times]) -> list[dict[str, Any]]:
        """Return what has changed with one more reading of each rank: records that name a rank that became slow, or
        (`over`) no longer is, its own work against the median rank's, and its times as shares of their sum.
        """
        self._sums = [before + reading for before, reading in zip(self._sums, readings, strict=True)]
        sums = self._sums
        if min(times.steps for times in sums) < self._steps or max(times.total for times in sums) < self._seconds:
            return []
        self._sums = [Times()] * len(sums)
        usual = median_low(times.own for times in sums)
        changes = []
        for rank, times in enumerate(sums):
            slow = times.own > FACTOR * usual and times.own - usual > LOSS * times.total
            self._contradictions[rank] = self._contradictions[rank] + 1 if slow != (rank in self._slow) else 0
            if self._contradictions[rank] == TWICE:
                self._contradictions[rank] = 0
                self._slow ^= {rank}
                factor = round(times.own / max(usual, 1e-9), 2)
                shares = {part: round(getattr(times, part) / max(times.total, 1e-9), 3) for part in PARTS}
                who = {"slow_rank": rank, "host": self.hosts[rank]}
                changes.append(who | {"over": not slow, "factor": factor, **shares})
        return changes
