"""One run at a time in a folder: rank 0 holds OUT/lock as long as it lives. The kernel frees it, however the process
ends.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import time
from pathlib import Path
from typing import TextIO

PATIENCE = 20.0  # seconds that a run which is just ending is waited for: the workers of a killed agent first save


class Lock:
    """Held until `release`. Raises OSError where the folder cannot be written."""

    def __init__(self, file: TextIO | None) -> None:
        self.file = file

    def release(self) -> None:
        if self.file is not None:
            self.file.close()


def claim(out: Path) -> Lock | str:
    """The lock of a run folder, or who has it."""
    out.mkdir(parents=True, exist_ok=True)
    file = (out / "lock").open("a+")
    began = time.monotonic()
    told = False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another run"
            if time.monotonic() - began > PATIENCE:
                file.close()
                return holder
            if not told:
                print(f"{out}: in use by {holder}; waiting for it to end", file=sys.stderr)
                told = True
            time.sleep(0.2)
        except OSError:  # a file system without locks: then nothing can be said
            file.close()
            return Lock(None)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
    file.flush()
    return Lock(file)
