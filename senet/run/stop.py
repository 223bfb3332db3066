"""A wish to stop: TERM, INT or a file OUT/stop. The loop finishes its step, saves and exits with 75."""

from __future__ import annotations

import contextlib
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
        # Python calls `_note` only once the main thread comes back to it; in a wait for the device it never does. The
        # number of a signal is written here at once.
        self.arrived, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        self.asked: float | None = None  # when `asked_seconds` found the first

    @property
    def wanted(self) -> bool:
        now = time.monotonic()
        if not self.signalled and self.file is not None and now - self.looked > 1:
            self.looked = now
            self.signalled = self.file.exists()
        return self.signalled

    def asked_seconds(self) -> float:
        """Return the seconds since this method first found that a signal had come; 0 if none has. It finds out even
        while the main thread is in a wait.
        """
        with contextlib.suppress(BlockingIOError):
            if self.asked is None and {signal.SIGTERM, signal.SIGINT} & set(os.read(self.arrived, 64)):
                self.asked = time.monotonic()
        return 0.0 if self.asked is None else time.monotonic() - self.asked

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
