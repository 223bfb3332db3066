"""Files that are there whole or not at all, also after a loss of power."""

from __future__ import annotations

import os
import secrets
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
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp" if shared else f"{path.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        fill(temporary)
        done("write")
        if durable:
            sync(temporary)
        done("sync")
        os.replace(temporary, path)
        done("rename")
    except BaseException:
        temporary.unlink(missing_ok=True)  # on a full disk it is in the way of the next one
        raise
    if durable:
        sync(path.parent)


def write_text(path: Path, text: str, durable: bool = True) -> None:
    """Write a small file, whole or not at all. Raises OSError."""
    replace(path, lambda temporary: temporary.write_text(text), durable=durable)


def sync(path: Path) -> None:
    """Bring a file's bytes, or a folder's names, to the disk. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
