"""The log, the terminal and W&B: what is told, and that none of them can harm a run."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import math
import os
import pty
import re
import resource
import struct
import subprocess
import sys
import termios
import time
from contextlib import suppress
from pathlib import Path

import pytest

from senet import track
from senet.errors import UsageError
from senet.run.report import Clock
from senet.system.run_folder import RunFolder
from senet.track.jsonl import JsonLines, last_seconds
from senet.track.tracker import Dispensable, Record, Stage, Tracker
from senet.track.wandb import decide, login
from tests.helpers import ROOT, environment, run


def opened(out: Path, names: str, resume_step: int | None = None) -> track.Tracker:
    """The trackers of a run in a folder, as a run opens them; `names` as --track has them."""
    start = track.Start(RunFolder(out), "a", {}, resume_step)
    return track.build(start, track.Terminal(), track.choose(names)[0])


def test_lines_after_the_resumed_step_go_and_a_torn_one_too(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    log = JsonLines(file, None)
    for step in range(5):
        log.log({"kind": "train", "step": step, "loss": math.nan if step == 1 else 0.5})
    log.close(True)
    with file.open("a") as torn:
        torn.write('{"kind": "train", "st')
    log = JsonLines(file, 2)
    log.log({"kind": "train", "step": 3, "loss": 0.25})
    log.close(True)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert lines[1]["loss"] is None
    assert lines[3]["loss"] == 0.25


def test_a_rewind_takes_back_all_but_events_and_steps_still_rise(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    log = JsonLines(file, None)
    for step in (2, 4, 6):
        log.log({"kind": "train", "step": step})
    log.log({"kind": "event", "step": 6, "skipped": 2})
    log.rewind(4)
    log.log({"kind": "train", "step": 5})
    log.rewind(2)
    log.log({"kind": "train", "step": 3})
    log.close(True)
    assert [json.loads(line) for line in file.read_text().splitlines()] == [
        {"kind": "train", "step": 2},
        {"kind": "event", "step": 2, "skipped": 2, "undone_step": 6},
        {"kind": "train", "step": 3},
    ]
    JsonLines(file, None).log({"kind": "train", "step": 1})  # of another run
    assert len(file.read_text().splitlines()) == 1
    assert len((tmp_path / "log.jsonl.1").read_text().splitlines()) == 3


def test_what_a_full_disk_does_not_take_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The most that a file may hold is what the kernel has here for a disk that fills up in the middle of a line."""
    file, limits = tmp_path / "log.jsonl", resource.getrlimit(resource.RLIMIT_FSIZE)
    log = JsonLines(file, None)
    log.log({"kind": "train", "step": 1})
    size = file.stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, limits[1]))
    try:
        log.log({"kind": "train", "step": 2})
        log.log({"kind": "train", "step": 3})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.stat().st_size == size + 10
    log.log({"kind": "train", "step": 4})
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [1, 2, 3, 4]
    with suppress(OSError), Path("/dev/full").open("w") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", full)
        track.Terminal().say("to a file on the same disk")
        log.log({"kind": "train", "step": 5})
    assert b'"step": 5' in file.read_bytes()


def test_a_tracker_whose_disk_fails_is_off_and_the_run_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    class OnDisk(Tracker):
        def log(self, record: Record) -> None:
            Path("/dev/full").write_text(str(record))

    tracker = Dispensable("disk", OnDisk)
    tracker.log({"kind": "train"})
    tracker.close(True)
    (record,) = caplog.records
    assert record.getMessage() == "disk: off from here on: [Errno 28] No space left on device"


def test_when_wandb_is_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """wandb itself says where it finds a login, whatever is told to it and by whatever means."""
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert decide(asked=False) == (False, "W&B: off (no login and no WANDB_MODE; --track wandb turns it on)")
    assert decide(asked=True)[0]
    key, host = "5ec2e7" * 7, "http://localhost:8080"
    logged_in = [sys.executable, "-m", "wandb", "login", "--no-verify", "--host", host, key]
    subprocess.run(logged_in, cwd=tmp_path, capture_output=True, check=True)
    assert key in (tmp_path / "netrc").read_text()
    on, why = decide(asked=False)
    assert (on, login().key) == (True, key)
    assert f"a login for {host} was found" in why
    monkeypatch.setenv("NETRC", str(tmp_path / "other"))
    assert not decide(asked=False)[0]
    monkeypatch.setenv("WANDB_API_KEY", "short")
    assert "WANDB_API_KEY invalid" in decide(asked=False)[1]
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert not decide(asked=False)[0]


def test_trackers_are_named_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert track.choose("none")[0] == []
    assert track.choose("auto")[0] == track.choose("wandb")[0] == [track.NAMED["wandb"]]
    refused = run("launch.train", "configs/debug/tiny.yaml", "--track", "wandb,aim", "--out", tmp_path / "out")
    assert refused.returncode == 2
    assert "argument --track: 'aim' is none of auto, none, wandb, tensorboard" in refused.stderr


def test_tensorboard_is_asked_for_by_name(tmp_path: Path) -> None:
    """Its package is no requirement: without it the error says what to install, and nothing is written."""
    if importlib.util.find_spec("tensorboard") is None:
        with pytest.raises(UsageError, match="pip install tensorboard"):
            track.choose("tensorboard")
        return
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    figures = {"kind": "train", "epoch": 1, "seconds": 1.0, "learning_rate": 0.1}
    figures |= {"images_per_second": 100.0, "data_wait": 0.25}
    tracker = opened(tmp_path, "tensorboard")
    for step in (1, 2, 3):
        tracker.log({**figures, "step": step, "loss": float(step)})
    tracker.rewind(1)
    tracker.log({**figures, "step": 2, "loss": 7.0})
    tracker.log({"kind": "event", "epoch": 1, "seconds": 1.0, "step": 2, "reason": "none"})
    tracker.close(True)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 1.0), (2, 7.0)]
    assert "event/reason/text_summary" in events.Tags()["tensors"]


BAR = """
from pathlib import Path
from senet.track.tracker import Dispensable, Record, Stage, Tracker
from tests.track.test_track import opened
tracker = opened(Path(".") / "OUT", "none")
times = {"epoch": 1, "step": 5, "seconds": 1.0}
tracker.begin(Stage("epoch", 1, 2, 4, 10))
tracker.expect(7200.0)
tracker.log({"kind": "train", "loss": 1.5, "learning_rate": 0.1, "images_per_second": 100.0, "data_wait": 0.25} | times)
tracker.advance(5)
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
    assert "epoch 1/2:  40%" in text, "a resumed epoch begins where it was left"
    assert re.search(r"4/10, \S+ left, run 2 h 0 min left, loss 1.5000, 100 images/s, data wait 25%", text), text


def test_plain_lines_elsewhere(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert not sys.stderr.isatty()
    tracker = opened(tmp_path, "none")
    times = {"epoch": 1, "step": 5, "seconds": 1.0}
    tracker.begin(Stage("epoch", 1, 3, 0, 10))
    tracker.expect(50.0)
    tracker.log(
        {"kind": "train", "loss": 1.5, "learning_rate": 0.1, "images_per_second": 100.0, "data_wait": 0.25} | times
    )
    slow = {"slow_rank": 3, "host": "node7", "factor": 2.5, "data": 0.75, "compute": 0.2, "communication": 0.05}
    tracker.log({"kind": "event", "over": False} | slow | times)
    tracker.log({"kind": "event", "over": True} | slow | times)
    tracker.close(True)
    shown = capfd.readouterr().err
    assert "rank 3 on node7 holds up the others: its own work takes 2.5 times the usual; of its time data 75%" in shown
    assert "rank 3 on node7 keeps up again" in shown
    assert re.search(
        r"\d\d:\d\d:\d\d epoch 1/3, step 5/10: loss 1.5000, 100 images/s, data wait 25%, lr 0.1, run 50 s left",
        shown,
    )
    assert "\r" not in shown


def test_times_of_a_run_are_those_of_training_and_go_on_over_starts(tmp_path: Path) -> None:
    clock = Clock()
    clock.go_on_from(100.0)
    assert 100 <= clock.seconds() < 101
    assert clock.end_interval(0, 32, 0.0) == {}, "no step was made"
    assert clock.left(10, 1, 5.0) is None
    clock.begin_interval(0, 1.0)
    time.sleep(0.3)
    clock.leave_out(0.25)  # a checkpoint was saved
    found = clock.end_interval(2, 32, 1.01)
    assert 64 / 0.2 < found["images_per_second"] < 64 / 0.05
    assert 0.04 < found["data_wait"] < 0.21
    assert 10 * 0.025 <= (clock.left(10, 2, 5.0) or 0) - 10 < 10 * 0.1
    log = JsonLines(tmp_path / "log.jsonl", None)
    log.log({"kind": "train", "epoch": 1, "step": 5, "seconds": 7.5})
    log.close(True)
    assert last_seconds(tmp_path / "log.jsonl") == 7.5
