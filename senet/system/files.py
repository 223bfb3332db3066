"""Files that are there whole or not at all, also after a loss of power."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def replace(path: Path, fill: Callable[[Path], object], done: Callable[[str], None] = lambda phase: None) -> None:
    """Let `fill` write a temporary file beside `path`, sync it and move it there. `done` is told of write, sync,
    rename. Raises OSError.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        fill(temporary)
        done("write")
        sync(temporary)
        done("sync")
        os.replace(temporary, path)
        done("rename")
    except BaseException:
        temporary.unlink(missing_ok=True)  # on a full disk it is in the way of the next one
        raise
    sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """A small file. Raises OSError."""
    replace(path, lambda temporary: temporary.write_text(text))


def sync(path: Path) -> None:
    """A file's bytes, or a folder's names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
