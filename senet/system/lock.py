"""Locks held by one process of all machines that share a folder, which end with the process however that ends.

The kernel keeps them where the file system knows locks. Elsewhere (some FUSE and object mounts) the holder signs a file
beside it again and again, and a signature that does not change any more is that of a process that has ended.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from senet.system.files import write_text

UNCHANGEABLE = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)  # object stores, of a file that is there
POLL = 0.2  # seconds between two tries
BEAT = 3.0  # seconds between two signatures ...
STALE = 15.0  # ... and after the last one, until its process is taken for dead


class InUse(Exception):
    """Another process holds the lock; the message says which."""


class Lock:
    """Held until `release`, or the end of the process."""

    def __init__(self, release: Callable[[], object]) -> None:
        self.release = release


def acquire(file: Path, patience: float, waiting: Callable[[str], object] = lambda holder: None) -> Lock:
    """Return the lock of `file`.

    `waiting` is called with the holder's name if it has to be waited for, `patience` seconds at most. Raises InUse
    after that, and OSError if the file cannot be written.
    """
    deadline, told = time.monotonic() + patience, False
    by_signature = _Signature(file.with_name(file.name + ".held"))
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        if error.errno in UNCHANGEABLE:
            return by_signature.acquire(deadline, waiting)
        raise
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = file.read_text().strip() or "another run"
        except OSError:
            os.close(descriptor)
            return by_signature.acquire(deadline, waiting)
        else:
            with contextlib.suppress(OSError):  # a full disk
                # Through the lock's own descriptor: on NFS, closing another one of the same file would free the lock.
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, _name().encode(), 0)
            return Lock(lambda: os.close(descriptor))
        if time.monotonic() > deadline:
            os.close(descriptor)
            raise InUse(holder)
        if not told:
            waiting(holder)
            told = True
        time.sleep(POLL)


def _name() -> str:
    return f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}"


class _Signature:
    """A lock by writing and renaming alone. Two that try at once look again, after a while, whose name came last."""

    def __init__(self, file: Path) -> None:
        self.file, self.token, self.name, self.beats = file, secrets.token_hex(8), _name(), 0
        self._ended = threading.Event()

    def acquire(self, deadline: float, waiting: Callable[[str], object]) -> Lock:
        told = False
        while True:
            found = now = self._read()
            stale = time.monotonic() + STALE
            while now and now == found and time.monotonic() < stale:
                if not told:
                    waiting(found["name"])
                    told = True
                time.sleep(POLL)
                now = self._read()
            if now == found:  # nobody's
                self._sign()
                time.sleep(2 * POLL)
                if self._read().get("token") == self.token:
                    threading.Thread(target=self._beat, name="lock", daemon=True).start()
                    return Lock(self._release)
            elif now and time.monotonic() > deadline:
                raise InUse(now["name"])

    def _read(self) -> dict[str, str]:
        """Return the signature that is there; nothing if there is none."""
        try:
            found: dict[str, str] = json.loads(self.file.read_text())
            return found if {"token", "name", "beat"} == found.keys() else {}
        except (OSError, ValueError, AttributeError):
            return {}

    def _sign(self) -> None:
        self.beats += 1
        facts = {"token": self.token, "name": self.name, "beat": self.beats}
        write_text(self.file, json.dumps(facts), durable=False)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            if self._read().get("token") == self.token:
                with contextlib.suppress(OSError):  # a full disk
                    self._sign()

    def _release(self) -> None:
        self._ended.set()
        with contextlib.suppress(OSError):
            write_text(self.file, "", durable=False)
