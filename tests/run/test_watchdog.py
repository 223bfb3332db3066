"""Hangs are found and named whatever the clocks say, and a rank whose torchrun has died does not run on."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from tests.helpers import start_text, until
from tests.preloaded import Program

RANK = """
import sys, time
from pathlib import Path
from senet.run.stop import Stop
from senet.run.watchdog import Watchdog
from senet.system.run_folder import RunFolder
rank, limit, phase = int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
step, clock = int(sys.argv[5]), float(sys.argv[6])
now = time.time
time.time = lambda: now() + clock
watchdog = Watchdog(RunFolder(Path(sys.argv[1])), rank, 3, limit, Stop())
watchdog.at(phase, step)
time.sleep(1e6)
"""


def rank(out: Path, number: int, *words: object) -> Program:
    """A rank that hangs: its number, limit in seconds, phase and step, and by how much its clock is wrong."""
    return start_text(RANK, out / f"said-{number}", out, number, *words)


@pytest.mark.parametrize("frozen", [False, True])
def test_the_rank_behind_is_named_whatever_the_clocks_say(tmp_path: Path, frozen: bool) -> None:
    (tmp_path / "health").mkdir()
    left = {"rank": 7, "host": "x", "step": 0, "phase": "start", "stuck": 99.0, "beat": 3}
    (tmp_path / "health/rank-7.json").write_text(json.dumps(left))  # of an earlier start of more ranks
    others = [rank(tmp_path, 0, 60, "compute", 5, 1e5), rank(tmp_path, 1, 60, "data", 4, -1e5)]
    try:
        until(lambda: all((tmp_path / f"health/rank-{number}.json").exists() for number in (0, 1)))
        if frozen:
            others[0].send_signal(signal.SIGSTOP)  # its host has it, but nobody hears of it
        assert rank(tmp_path, 2, 8, "compute", 5, 0).wait(60) == 1
        text = (tmp_path / "said-2").read_text()
        assert "rank 2 on" in text
        named = text.partition(" is behind: ")
        assert named[0].split("; ")[-1].startswith(f"rank {0 if frozen else 1} on")
        assert named[2].startswith("silent for more than" if frozen else "in phase 'data' after 4 steps")
        assert f"line {len(RANK.splitlines())} in <module>" in text  # the stack
    finally:
        for process in others:
            process.kill()
            process.wait()


def test_a_run_that_was_suspended_goes_on(tmp_path: Path) -> None:
    """As by Ctrl-Z or `scontrol suspend`, in the middle of a step."""
    program = """
import sys, time
from pathlib import Path
from senet.run.stop import Stop
from senet.run.watchdog import Watchdog
from senet.system.run_folder import RunFolder
watchdog = Watchdog(RunFolder(Path(sys.argv[1])), 0, 1, 8, Stop())
watchdog.at("compute", 1)
print("computes", flush=True)
while time.process_time() < float(sys.argv[2]):
    pass
print("done", flush=True)
"""
    said = tmp_path / "said"
    process = start_text(program, said, tmp_path, 0.5)
    until(lambda: "computes" in said.read_text())
    process.send_signal(signal.SIGSTOP)
    time.sleep(12)
    process.send_signal(signal.SIGCONT)
    assert process.wait(60) == 0, said.read_text()
    assert "done" in said.read_text()


def test_a_parent_that_dies_matters_only_under_torchrun(tmp_path: Path) -> None:
    program = """
import os, sys, time
from pathlib import Path
from senet.run.stop import Stop
from senet.run.watchdog import Watchdog
from senet.system.run_folder import RunFolder
if os.fork():
    time.sleep(1)  # till the other has looked who its parent is
    os._exit(0)
called = []
stop = Stop()
stop.launcher_is_gone = lambda: called.append(1)
watchdog = Watchdog(RunFolder(Path(sys.argv[1])), 0, 1, 0.8, stop)
for _ in range(20):
    watchdog.at("compute", 1)
    time.sleep(0.15)
print("called", len(called), flush=True)
"""
    for more, calls in (({"LOCAL_RANK": "0"}, 1), ({}, 0)):
        said = tmp_path / f"said-{calls}"
        start_text(program, said, tmp_path, **more)
        until(lambda said=said: "called" in said.read_text(), seconds=60)  # type: ignore[misc]
        assert f"called {calls}" in said.read_text()
