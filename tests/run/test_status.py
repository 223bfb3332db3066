"""Where a run is, for scripts: the exit code and the first two words."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from senet.run.status import Status, read, write
from tests.helpers import ROOT


def told(out: Path) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, "-m", "launch.status", out], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.count("\n") == 1, done.stderr
    return done.returncode, done.stdout.split(maxsplit=2)


@pytest.mark.parametrize(
    ("status", "code", "state"),
    [
        (None, 2, "nothing"),
        (Status("running", 12, 1, 3), 75, "running"),
        (Status("stopped", 12, 1, 3, 75, reason="asked to"), 75, "stopped"),
        (Status("done", 12, 3, 3, 0), 0, "done"),
        (Status("failed", 12, 1, 3, 1, reason="RunError: too many images\ncannot be decoded"), 1, "failed"),
        (Status("failed", 12, 1, 3, 1, reason="RuntimeError: connection closed by peer"), 75, "crashed"),
    ],
)
def test_states(tmp_path: Path, status: Status | None, code: int, state: str) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/step-00000010.pt.json").write_text("{}")
    (tmp_path / "checkpoints/step-00000012.pt").write_text("not finished")
    if status is not None:
        write(tmp_path, status)
    was, (word, step, rest) = told(tmp_path)
    assert (was, word) == (code, state)
    if status is not None:
        assert (step, f"epoch {status.epoch} of 3" in rest) == ("10", True)


def test_a_damaged_file_is_no_reason_to_give_up(tmp_path: Path) -> None:
    for text in ("", "[]", '{"state": "stopped"}'):
        (tmp_path / "status.json").write_text(text)
        assert told(tmp_path)[0] == 75
    write(tmp_path, Status("done", 1, 1, 1, 0))
    status = read(tmp_path)
    assert status is not None
    assert status.state == "done"
