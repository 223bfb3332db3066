"""Locks held by one process of all machines that share a folder; the kernel frees them however the process ends."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)  # from a file system that has none


class InUse(Exception):
    """Another process holds the lock; the message says which."""


def acquire(file: Path, patience: float, waiting: Callable[[str], object] = lambda holder: None) -> FileLock | None:
    """Return the lock of `file`, held until `release()` or the end of the process; None if the disk knows no locks.

    `waiting` is called with the holder's name if it has to be waited for, `patience` seconds at most. Raises InUse
    after that, and OSError if the file cannot be written.
    """
    lock = FileLock(file, on_acquired=_sign)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            waiting(_holder(file))
            lock.acquire(timeout=patience, poll_interval=0.2)
    except Timeout:
        raise InUse(_holder(file)) from None
    except OSError as error:
        if error.errno in NO_LOCKS:
            return None
        raise
    return lock


def _sign(descriptor: int) -> None:
    # Through the lock's own descriptor: on NFS, closing another one of the same file would free the lock.
    os.ftruncate(descriptor, 0)
    signature = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}"
    os.pwrite(descriptor, signature.encode(), 0)


def _holder(file: Path) -> str:
    return file.read_text().strip() or "another run"
