"""A wish to stop: TERM or INT sets a flag, the loop finishes its step, saves and exits with 75."""

from __future__ import annotations

import os
import signal
from types import FrameType

RESUMABLE = 75  # sysexits' EX_TEMPFAIL: started again, the run goes on


class Stop:
    """`wanted` turns true at the first TERM or INT. A second INT, from someone impatient, interrupts at once."""

    def __init__(self) -> None:
        self.wanted = False
        self.parent = os.getpid()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.wanted and number == signal.SIGINT and os.getpid() == self.parent:
            raise KeyboardInterrupt
        self.wanted = True
