"""Processes of this machine, as /proc tells of them."""

from __future__ import annotations

import contextlib
from pathlib import Path


def family(number: int) -> list[int]:
    """A process and all its living descendants."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):  # it has just ended
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found = {number}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found)
