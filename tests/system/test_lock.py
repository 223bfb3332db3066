"""Locks where the file system has none."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from pathlib import Path

import pytest

from senet.system import lock


def test_a_lock_without_locks_is_held_while_its_process_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOSYS, "not here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(lock, "BEAT", 0.05)
    monkeypatch.setattr(lock, "STALE", 0.5)
    told: list[str] = []
    first = lock.acquire(tmp_path / "lock", 0)
    with pytest.raises(lock.InUse, match=f"process {os.getpid()} on"):
        lock.acquire(tmp_path / "lock", 0.1, told.append)
    assert len(told) == 1
    first.release()
    lock.acquire(tmp_path / "lock", 0).release()
    (tmp_path / "lock.held").write_text(json.dumps({"token": "x", "name": "one that was killed", "beat": 1}))
    began = time.monotonic()
    lock.acquire(tmp_path / "lock", 0).release()  # nobody signs any more
    assert time.monotonic() - began > lock.STALE
