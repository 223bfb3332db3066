"""Faults on purpose, for tests and drills: SENET_FAULTS="kill@1:5 kill@0:6/rename nan@0:7", ACT@RANK:STEP[/PHASE].

Steps are counted over the whole run. Acts: kill (SIGKILL), term (TERM to itself), hang, slow (a second of delay, in
every step from then on), clock (the wall clock jumps ahead by a day), nan (in the images of a step). Phases: data (the
default: before the images of a step), validate (of the epoch that ends with the step), and write, sync, rename and
names of the step's checkpoint, when each is done.

A process that torchrun has restarted does nothing of it, otherwise a run could never get past a fault; "hang@0:3:1" is
for the first restart.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from typing import NamedTuple

from senet.errors import UsageError


class Fault(NamedTuple):
    act: str
    phase: str
    step: int


def meet(phase: str, step: int) -> None:
    """Commit the faults that are due at this `phase` of a step; none, at no cost, unless the environment names any."""
    for fault in _ARMED:
        if fault.phase == phase and (fault.step == step or (fault.act == "slow" and fault.step <= step)):
            _ACTS[fault.act]()


def nan(step: int) -> bool:
    """Say whether the images of a step are to be spoilt."""
    return any(fault.act == "nan" and fault.step == step for fault in _ARMED)


def _set_clock_ahead() -> None:
    now = time.time
    time.time = lambda: now() + 86_400.0


_ACTS: dict[str, Callable[[], object]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "term": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "hang": lambda: time.sleep(1e6),
    "slow": lambda: time.sleep(1.0),
    "clock": _set_clock_ahead,
    "nan": lambda: None,  # see `nan`
}
_FORM = re.compile(rf"({'|'.join(_ACTS)})@(\d+):(\d+)(?:/(data|validate|write|sync|rename|names))?(?::(\d+))?")


def _armed() -> tuple[Fault, ...]:
    rank, restart = int(os.environ.get("RANK", "0")), int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    found = []
    for word in os.environ.get("SENET_FAULTS", "").split():
        match = _FORM.fullmatch(word)
        if match is None:
            raise UsageError(f"SENET_FAULTS: {word!r}: no fault; write ACT@RANK:STEP, see senet/system/faults.py")
        if int(match[2]) == rank and int(match[5] or 0) == restart:
            found.append(Fault(match[1], match[4] or "data", int(match[3])))
    return tuple(found)


_ARMED = _armed()
