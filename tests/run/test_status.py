"""Where a run is: for scripts the exit code and the first two words, for people labels and a table."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from launch.status import main
from senet.run.status import Status, read, write
from senet.system.seal import Sealing
from tests.helpers import ROOT


def told(out: Path) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, "-m", "launch.status", "--line", out], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.count("\n") == 1, done.stderr
    return done.returncode, done.stdout.split(maxsplit=2)


def sealed(path: Path, **facts: float) -> None:
    """Write a checkpoint with nothing in it."""
    with zipfile.ZipFile(path, "w"):
        pass
    content = path.read_bytes()
    with path.open("wb") as file:
        sealing = Sealing(file)
        sealing.write(content)
        sealing.seal(facts)


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
    sealed(tmp_path / "checkpoints/step-00000010.pt")
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


def test_a_person_reads_labels_and_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert f"no run has begun in {tmp_path}" in capsys.readouterr().out
    first, second = tmp_path / "imagenet/se50", tmp_path / "se20"
    for out, status in (first, Status("done", 12, 3, 3, 0)), (second, Status("failed", 1, 0, 3, 1, "", "RunError: no")):
        (out / "checkpoints").mkdir(parents=True)
        sealed(out / "checkpoints/step-00001200.pt", step=1200)
        write(out, status)
    sealed(first / "checkpoints/best.pt", step=1200, top1_error=23.456)
    assert main([str(first)]) == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert shown["state"] == "done"
    assert shown["position"] == "epoch 3 of 3, checkpoint of step 1,200"
    assert shown["best"] == "23.46 % top-1 error"
    assert main([str(tmp_path)]) == 1
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0][:4] == ["run", "state", "epoch", "step"]
    assert [row[:5] for row in rows[1:]] == [
        ["imagenet/se50", "done", "3/3", "1,200", "23.46"],
        ["se20", "failed", "0/3", "1,200", "-"],
    ]
