"""What ranks ask for between two steps, a save or a stop, and how they come to know each other's requests."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import IntEnum

from senet.distributed import World

EVERY = 0.25  # seconds between two questions
MOST = 1000  # steps between two questions


class Request(IntEnum):
    """What a rank can ask of all others between two steps; the greatest request wins."""

    GO_ON = 0
    SAVE = 1
    STOP = 2
    STOP_ORPHANED = 3  # its torchrun is gone


class Exchange:
    """Tells all ranks the greatest of their requests, after the same step. They ask each other every quarter of a
    second: on hundreds of ranks a question takes longer than a small net's step.

    The answer is looked at one step after the question, which the device computes meanwhile. It also says after how
    many steps to ask again: the fewest that any rank proposes, by its own clock, and at most twice as many as before,
    for the first steps of a host do not wait for their device.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self._answer: Callable[[], list[int]] | None = None
        self._gap = 1  # steps from one question to the next
        self._pause = 0  # steps until the next question
        self._steps = 0  # since the last one, at the time
        self._asked = time.monotonic()

    def after_step(self, request: Request, due: float) -> Request:
        """Return the greatest request known. All ranks call it; `due`: seconds until this one will ask for more."""
        if self.world.size == 1:
            return request
        self._steps += 1
        greatest = Request.GO_ON
        if self._answer is not None:
            value, fewest = self._answer()
            greatest, self._answer, self._gap = Request(value), None, -fewest
            self._pause = self._gap - 1
        if self._pause > 0:
            self._pause -= 1
            return greatest
        now = time.monotonic()
        steps = int(min(EVERY, due) * self._steps / max(now - self._asked, 1e-6))
        self._answer = self.world.all_reduce_max(request, -max(1, min(MOST, 2 * self._gap, steps)))
        self._steps, self._asked = 0, now
        return greatest

    def finish(self) -> None:
        """Wait for a question that is on its way: the next collective must not meet it."""
        if self._answer is not None:
            self._answer()
            self._answer = None
