"""Faults on purpose, for tests and drills: SENET_FAULTS="nan@1:5 kill@0:7" does NAME on RANK at STEP (counted over the whole run).

Only in a process that torchrun has not restarted, else a run could never get past a fault; "hang@0:3:1" is for the first restart.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable

from senet.errors import UsageError

_FORM = re.compile(r"([a-z-]+)@(\d+):(\d+)(?::(\d+))?")


def _armed() -> set[tuple[str, int]]:
    rank, restart = int(os.environ.get("RANK", "0")), int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    found = set()
    for word in os.environ.get("SENET_FAULTS", "").split():
        match = _FORM.fullmatch(word)
        if match is None:
            raise UsageError(f"SENET_FAULTS: {word!r}: a fault is written NAME@RANK:STEP or NAME@RANK:STEP:RESTART")
        if int(match[2]) == rank and int(match[4] or 0) == restart:
            found.add((match[1], int(match[3])))
    return found


def at(step: int) -> Callable[[str], bool]:
    """Whether a fault of some name is due at a step."""
    return (lambda name: (name, step) in _ARMED) if _ARMED else _never


def _never(name: str) -> bool:
    return False


_ARMED = _armed() if "SENET_FAULTS" in os.environ else set()
