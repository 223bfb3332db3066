"""The log, the terminal and W&B: what is told, and that none of them can harm a run."""

from __future__ import annotations

import fcntl
import json
import math
import os
import pty
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from senet import track
from senet.track.lines import JsonLines
from senet.track.wandb import decide
from tests.conftest import ROOT, environment, run


def test_lines_after_the_resumed_step_go_and_a_torn_one_too(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    log = JsonLines(file, None)
    for step in range(5):
        log.log({"kind": "train", "step": step, "loss": math.nan if step == 1 else 0.5})
    log.close()
    with file.open("a") as torn:
        torn.write('{"kind": "train", "st')
    log = JsonLines(file, 2)
    log.log({"kind": "train", "step": 3, "loss": 0.25})
    log.close()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert lines[1]["loss"] is None
    assert lines[3]["loss"] == 0.25


def test_when_wandb_is_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not decide("auto")[0]
    assert decide("wandb")[0]
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password secret\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.delenv("NETRC")
    on, why = decide("auto")
    assert on
    assert "secret" not in why
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert not decide("auto")[0]


def messages(file: Path) -> Iterator[bytes]:
    """The records of a .wandb file. Its frame is LevelDB's log: blocks of 32 KiB, each piece with CRC, length and kind before it.

    wandb 0.31 reads it in its Go core and ships no Python reader any more; the messages inside are parsed with wandb's own classes.
    """
    content, place, whole = file.read_bytes(), 7, b""
    while place + 7 <= len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # full, or the last piece
            yield whole
            whole = b""


def history(out: Path) -> list[dict[str, Any]]:
    """All history records of the offline runs in a folder, oldest first."""
    from wandb.proto import wandb_internal_pb2

    rows = []
    for file in sorted(out.glob("wandb/offline-run-*/run-*.wandb")):
        for data in messages(file):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item})
    return rows


def test_an_offline_run_reads_back_and_a_resume_continues_it(tmp_path: Path, tiny: Path, images: Path) -> None:
    out = tmp_path / "out"
    arguments = [tiny, "--data", images, "--out", out, "--backend", "vision", "--log-every", "2"]
    done = run("launch.train", *arguments, WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    assert "W&B: on (WANDB_MODE=offline)" in done.stderr
    logged = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    rows = history(out)
    assert [row["step"] for row in rows] == [line["step"] for line in logged]
    for row, line in zip(rows, logged, strict=True):
        assert row[f"{line['kind']}/top1_error"] == pytest.approx(line["top1_error"])
    identity = (out / "wandb_id").read_text()
    assert all(identity in str(folder) for folder in out.glob("wandb/offline-run-*"))


def test_an_unreachable_server_neither_fails_nor_stalls_a_run(tmp_path: Path, tiny: Path, images: Path) -> None:
    out = tmp_path / "out"
    began = time.monotonic()
    done = run(
        "launch.train",
        tiny,
        "--data",
        images,
        "--out",
        out,
        "--backend",
        "vision",
        WANDB_BASE_URL="http://127.0.0.1:9",
        WANDB_API_KEY="0" * 40,
    )
    assert done.returncode == 0, done.stderr
    assert "done: 2 epochs" in done.stderr
    assert "0" * 40 not in done.stderr + done.stdout + (out / "run.json").read_text()
    assert time.monotonic() - began < 90


BAR = """
from pathlib import Path
from senet import track
tracker = track.build(Path(".") / "OUT", choice="none", name="a", config={}, resume_step=None)
times = {"epoch": 1, "step": 5, "seconds": 1.0}
tracker.log({"kind": "train", "loss": 1.5, "learning_rate": 0.1, "images_per_second": 100.0, "data_wait": 0.25} | times)
tracker.progress(1, 2, 5, 10, 100.0, 0.25)
tracker.close(True)
"""


def test_a_bar_on_a_terminal(tmp_path: Path) -> None:
    screen, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    program = BAR.replace('Path(".") / "OUT"', f"Path({str(tmp_path)!r})")
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment(), stderr=end, check=True)
    os.close(end)
    shown = b""
    try:
        while part := os.read(screen, 4096):
            shown += part
    except OSError:  # the other side is closed
        pass
    text = shown.decode()
    assert "epoch 1/2" in text
    assert "100 images/s" in text
    assert "data 25%" in text


def test_plain_lines_elsewhere(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert not sys.stderr.isatty()
    tracker = track.build(tmp_path, choice="none", name="a", config={}, resume_step=None)
    times = {"epoch": 1, "step": 5, "seconds": 1.0}
    tracker.log({"kind": "train", "loss": 1.5, "learning_rate": 0.1, "images_per_second": 100.0, "data_wait": 0.25} | times)
    tracker.close(True)
    shown = capfd.readouterr().err
    assert "epoch 1 step 5: loss 1.5000, lr 0.1, 100 images/s, waiting for data 25%" in shown
    assert "\r" not in shown
