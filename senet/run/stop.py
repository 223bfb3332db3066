"""The wish to stop a run: TERM, INT or a file OUT/stop. The loop finishes its step, saves and exits with 75."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from pathlib import Path
from types import FrameType

log = logging.getLogger(__name__)

RESUMABLE = 75  # sysexits' EX_TEMPFAIL: started again, the run goes on


class Stop:
    """`wanted` turns true at the first TERM or INT, or within a second of the appearance of `file`.

    A file reaches all ranks, on all nodes, past launchers that forward signals badly or not at all; one rank of each
    node looks for it so often, for a shared disk's sake, and ranks tell each other. A second INT, from someone
    impatient, interrupts at once.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.file = file
        self.orphaned = False  # the launcher of this process is gone
        self._signalled = False
        self._looked = 0.0
        self._every = 1 if os.environ.get("LOCAL_RANK", "0") == "0" else 10  # seconds between two looks for the file
        self._process = os.getpid()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)
        # Python calls `_note` only once the main thread comes back to it; in a wait for the device it never does. The
        # number of a signal is written here at once.
        self._arrived, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        self._asked: float | None = None  # when `asked_seconds` found the first

    @property
    def wanted(self) -> bool:
        """Whether the run is to stop."""
        now = time.monotonic()
        if not self._signalled and self.file is not None and now - self._looked > self._every:
            self._looked = now
            self._signalled = os.path.exists(self.file)  # unlike pathlib's, False if a shared disk hiccups
        return self._signalled

    def asked_seconds(self) -> float:
        """Return the seconds since this method first found a signal, the main thread may be waiting; 0 if none."""
        with contextlib.suppress(BlockingIOError):
            if self._asked is None and {signal.SIGTERM, signal.SIGINT} & set(os.read(self._arrived, 64)):
                self._asked = time.monotonic()
        return 0.0 if self._asked is None else time.monotonic() - self._asked

    def launcher_is_gone(self) -> None:
        """Stop, though nobody wished it: who started this process has died, and nobody would start it again."""
        self.orphaned = self._signalled = True

    def honoured(self) -> None:
        """Remove the file, so that the next start goes on."""
        if self.file is not None and os.path.lexists(self.file):
            try:
                self.file.unlink()
            except OSError as error:
                log.warning("%s: cannot be removed (%s): do so before the next start", self.file, error.strerror)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signalled and number == signal.SIGINT and os.getpid() == self._process:
            raise KeyboardInterrupt
        self._signalled = True
