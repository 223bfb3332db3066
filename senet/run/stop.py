"""A wish to stop: TERM, INT or a file OUT/stop. The loop finishes its step, saves and exits with 75."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import FrameType

RESUMABLE = 75  # sysexits' EX_TEMPFAIL: started again, the run goes on


class Stop:
    """`wanted` turns true at the first TERM or INT, or within a second of the appearance of `file`.

    A file reaches all ranks, on all nodes, past launchers that forward signals badly or not at all. A second INT, from
    someone impatient, interrupts at once.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.file = file
        self.signalled = False
        self.alone = False
        self.looked = 0.0
        self.parent = os.getpid()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    @property
    def wanted(self) -> bool:
        now = time.monotonic()
        if not self.signalled and self.file is not None and now - self.looked > 1:
            self.looked = now
            self.signalled = self.file.exists()
        return self.signalled

    def orphaned(self) -> None:
        """The launcher of this process is gone: as a wish to stop, but one that nobody had."""
        self.alone = self.signalled = True

    def honoured(self) -> None:
        """The next start is to go on."""
        if self.file is not None:
            self.file.unlink(missing_ok=True)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signalled and number == signal.SIGINT and os.getpid() == self.parent:
            raise KeyboardInterrupt
        self.signalled = True
