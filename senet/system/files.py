"""Files that are there whole or not at all, also after a loss of power."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import math
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path


def replace(
    path: Path,
    fill: Callable[[Path], object],
    done: Callable[[str], None] = lambda phase: None,
    shared: bool = False,
    durable: bool = True,
) -> None:
    """Let `fill` write a temporary file beside `path`, sync it and move it there; `done` is called with write, sync and
    rename, after each.

    The temporary file has a name of its own if the file is `shared`, that is, if other processes may be writing it too.
    What is not `durable` is not synced: many small files are synced sooner all at once. Raises OSError.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        if not shared:
            temporary.unlink(missing_ok=True)  # of a write that was broken off
    except OSError:  # some disks let nothing be removed
        shared = True
    if shared:
        temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        fill(temporary)
        done("write")
        if durable:
            sync(temporary)
        done("sync")
        os.replace(temporary, path)
        done("rename")
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()  # on a full disk it is in the way of the next one
        raise
    if durable:
        sync_names(path.parent)


def write_text(path: Path, text: str, durable: bool = True) -> None:
    """Write a small file, whole or not at all. Raises OSError."""
    replace(path, lambda temporary: temporary.write_text(text), durable=durable)


def digest(path: Path, algorithm: str) -> str:
    """Return the checksum of a file in hex, by an `algorithm` of hashlib. Raises OSError."""
    made = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            made.update(block)
    return made.hexdigest()


def free_name(path: Path) -> Path:
    """Return `path`, or that with the first number behind it, whichever nothing has."""
    names = itertools.chain([path], (path.with_name(f"{path.name}.{number}") for number in itertools.count(1)))
    return next(name for name in names if not os.path.lexists(name))


def free_bytes(folder: Path) -> float:
    """Return how much may be written to the disk of a folder; infinity if the file system does not say."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return math.inf
    return usage.free if usage.total else math.inf


def sync_names(folder: Path) -> None:
    """Bring a folder's names to the disk, if that is not left to the file system. Raises OSError if the disk fails."""
    try:
        sync(folder)
    except OSError as error:
        if error.errno == errno.EIO:
            raise


def sync(path: Path) -> None:
    """Bring a file's bytes, or a folder's names, to the disk. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
