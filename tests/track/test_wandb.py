"""Weights & Biases with its real client, against a server of our own that behaves well, badly or not at all."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shlex
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from senet.errors import RunError
from senet.system.run_folder import RunFolder
from senet.track.wandb import attach
from tests.helpers import ROOT, command, environment, lines, run, until
from tests.track.server import Server, serving
from tests.track.test_track import opened

KEY = "5ec2e7" * 7  # long enough for a key


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as it:
        yield it


def messages(file: Path) -> Iterator[bytes]:
    """The records of a .wandb file. Its frame is LevelDB's log: blocks of 32 KiB, each piece with CRC, length and kind
    before it.

    wandb 0.31 reads it in its Go core and ships no Python reader any more; the messages inside are parsed with wandb's
    own classes.
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


def kept(out: Path, kind: str) -> Iterator[Any]:
    """All records of a kind in OUT/wandb, oldest first."""
    from wandb.proto import wandb_internal_pb2

    for file in sorted(
        out.glob("wandb/*run-*/run-*.wandb"), key=lambda file: file.parent.name.removeprefix("offline-")
    ):
        for data in messages(file):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == kind:
                yield getattr(record, kind)


def values(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def history(out: Path) -> list[dict[str, Any]]:
    """All history records in OUT/wandb, oldest first, but for the tables that a run ends with."""
    return [row for record in kept(out, "history") if not has_tables(row := values(record.item))]


def has_tables(row: dict[str, Any]) -> bool:
    return any(name.startswith("val/classes") for name in row)


def written(out: Path) -> int:
    """How many lines the log of a run that goes on has; the newest may be there in part."""
    return (out / "log.jsonl").read_bytes().count(b"\n") if (out / "log.jsonl").exists() else 0


def assert_told(rows: list[dict[str, Any]], out: Path) -> None:
    """`rows`, of W&B, say what log.jsonl says."""
    assert [row["step"] for row in rows] == [line["step"] for line in lines(out)]
    for row, line in zip(rows, lines(out), strict=True):
        assert row[f"{line['kind']}/top1_error"] == pytest.approx(line["top1_error"])


def assert_no_secret(out: Path) -> None:
    files = [file for file in out.rglob("*") if file.is_file()]
    assert files
    assert not [file for file in files if KEY.encode() in file.read_bytes()]


def test_an_offline_run_reads_back_and_is_sent_by_the_command_that_was_said(
    tmp_path: Path, tiny: Path, images: Path, server: Server
) -> None:
    """It is called after its config, overrides and seed, and wandb's own variables count, as in any script."""
    out = tmp_path / "out"
    arguments = [tiny, "seed=3", "optim.lr=0.04", "--data", images, "--out", out, "--backend", "pillow"]
    flags = ["--log-every", "2", "--run-tags", "a, b", "--run-notes", "why not", "--log-checkpoints"]
    own = {"WANDB_PROJECT": "own", "WANDB_RUN_ID": "sweep1", "SLURM_JOB_ID": "77"}
    done = run("launch.train", *arguments, *flags, torchrun=True, WANDB_MODE="offline", **own)
    assert done.returncode == 0, done.stderr
    assert "W&B: on (WANDB_MODE=offline)" in done.stderr
    assert_told(history(out), out)
    (start,) = kept(out, "run")
    name = f"{tmp_path.name}/tiny optim.lr=0.04"
    assert (start.display_name, start.run_group, start.project) == (f"{name} seed=3", name, "own")
    assert (list(start.tags), start.notes, start.run_id) == (["a", "b"], "why not", "sweep1")
    config = values(start.config.update)
    assert (config["seed"], config["ranks"], config["slurm_job"]) == (3, 1, "77")
    assert config["flags"]["log_every"] == 2
    assert len(config["commit"]) == 40
    started = next(kept(out, "environment"))
    assert started.program.endswith("-m launch.train")
    assert list(started.args) == [str(word) for word in (*arguments, *flags)]
    assert_ends(out)
    assert_report(out)
    (command,) = re.findall(r"W&B: kept offline; `(wandb sync .*)` sends it", done.stderr)
    settings = environment(WANDB_BASE_URL=server.address, WANDB_API_KEY=KEY)
    words = [sys.executable, "-m", *shlex.split(command)]
    sent = subprocess.run(words, env=settings, capture_output=True, text=True, timeout=60, check=False)
    assert sent.returncode == 0, sent.stderr
    told = [row["step"] for row in server.rows["sweep1"].values() if not has_tables(row)]
    assert told == [line["step"] for line in lines(out)]


def assert_ends(out: Path) -> None:
    """An offline run has tables of the last validation, pictures, files that say what it is, and the best net."""
    (ends,) = (row for record in kept(out, "history") if has_tables(row := values(record.item)))
    last = lines(out)[-1]
    assert (ends["epoch"], ends["step"]) == (2, last["step"])
    artifacts = list(kept(out, "artifact"))
    content = {entry.path: Path(entry.local_path) for each in artifacts for entry in each.manifest.contents}
    classes, confusion, examples = (
        json.loads(content[f"val/{name}.table.json"].read_text())["data"]
        for name in ("classes", "confusion_table", "examples")
    )
    assert [row[0] for row in classes] == ["class0", "class1", "class2"]
    images = sum(row[1] for row in classes)
    assert sum(row[1] * row[2] for row in classes) / images == pytest.approx(last["top1_error"], abs=1e-3)
    assert (images, len(confusion)) == (last["images"], 9)
    right = sum(count for actual, said, count in confusion if actual == said)
    assert 100 * (1 - right / images) == pytest.approx(last["top1_error"])
    assert min(images, 32) / 2 < len(examples) <= 32
    for picture, name, label, of_label, *top in examples:
        with Image.open(content[picture["path"]]) as shown:
            assert shown.size == (picture["width"], picture["height"])
        number = int(Path(name).stem)
        assert label == f"class{number % 3}"
        assert of_label == dict(zip(top[::2], top[1::2], strict=True))[label]
        assert sum(top[1::2]) == pytest.approx(1, abs=1e-5)
    (files,) = out.glob("wandb/offline-run-*/files")
    assert (files / "out/config.yaml").read_bytes() == (out / "config.yaml").read_bytes()
    assert "torch==" in (files / "requirements.txt").read_text()
    (model,) = (artifact for artifact in artifacts if artifact.type == "model")
    assert (content["best.pt"], set(model.aliases)) == (out / "checkpoints/best.pt", {"best", "latest"})
    assert json.loads(model.metadata)["step"] in (5, 10)


def assert_report(out: Path) -> None:
    """The page of the run can be shown in its W&B run."""
    done = run("launch.report", out, "--no-images", "--attach", WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    assert re.search(r"\nW&B: `wandb sync .*` sends it$", done.stdout.rstrip()), done.stdout
    *_, last, attached = (values(record.item) for record in kept(out, "history"))
    assert attached["_step"] > last["_step"]
    (copy,) = out.glob(f"wandb/offline-run-*/files/{attached['report/path']}")
    assert copy.read_bytes() == (out / "report/index.html").read_bytes()
    assert [each.run_id for each in kept(out, "run")] == ["sweep1", "sweep1"]


def senders() -> list[Path]:
    """The processes of trackers in this one that still talk with the server."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            child = f"\nPPid:\t{os.getpid()}\n" in (process / "status").read_text()
            if child and b"wandb_process" in (process / "cmdline").read_bytes():
                found.append(process)
    return found


def begin(words: list[object], address: str) -> subprocess.Popen[str]:
    settings = environment(WANDB_BASE_URL=address, WANDB_API_KEY=KEY)
    return subprocess.Popen(command("launch.train", *words), cwd=ROOT, env=settings, stderr=subprocess.PIPE, text=True)


def test_one_run_over_a_stop_and_a_return_to_an_older_checkpoint(
    tmp_path: Path, tiny: Path, images: Path, server: Server
) -> None:
    """The newest checkpoints are damaged in between, so the same steps come twice: W&B must take them."""
    out = tmp_path / "out"
    words = [
        tiny,
        "epochs=120",  # W&B has begun before it ends
        "--data",
        images,
        "--out",
        out,
        "--backend",
        "pillow",
        "--log-every",
        "2",
        "--workers",
        "1",
        "--keep",
        "4",
    ]
    first = begin(words, server.address)
    until(lambda: written(out) > 8 and bool(server.rows))
    first.terminate()
    told = first.communicate(timeout=60)[1]
    assert first.returncode == 75, told
    before = lines(out)
    for newest in (out / "checkpoints/best.pt", *sorted((out / "checkpoints").glob("step-*.pt"))[-2:]):
        newest.write_bytes(newest.read_bytes()[:-100])
    second = begin(words, server.address)
    told = second.communicate(timeout=120)[1]
    assert second.returncode == 0, told
    assert "resumed" in told
    assert list(server.rows) == [identity := (out / "wandb_id").read_text()]
    assert f"W&B: {server.address}/me/senet/runs/{identity}" in told
    (rows,) = server.rows.values()
    assert sorted(rows) == list(range(len(rows)))
    steps = [rows[line]["step"] for line in sorted(rows) if not has_tables(rows[line])]
    again = [line["step"] for line in lines(out) if line["step"] >= steps[len(before)]]
    assert steps == [line["step"] for line in before] + again
    assert again[0] <= before[-1]["step"]
    assert_no_secret(out)


def test_what_a_broken_connection_kept_back_is_sent_later(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that is revoked in the middle of a run, and a start without a server: `wandb sync` makes one run
    of them.
    """
    for name, value in (("WANDB_BASE_URL", server.address), ("WANDB_API_KEY", KEY), ("NETRC", "/nonexistent")):
        monkeypatch.setenv(name, value)
    tracker = opened(tmp_path, "wandb")
    tracker.log(train_record(0))
    until(lambda: bool(server.rows))
    server.mood = "403"
    for step in range(1, 4):
        tracker.log(train_record(step))
    tracker.close(False)
    server.mood = "500"
    tracker = opened(tmp_path, "wandb", 3)
    for step in range(4, 8):
        tracker.log(train_record(step))
    tracker.close(True)
    until(lambda: len(history(tmp_path)) == 8 and not senders())  # which try on for a while
    server.mood = "well"
    words = [sys.executable, "-m", "wandb", "sync", "--yes", "--include-online"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert list(server.rows) == [(tmp_path / "wandb_id").read_text()]
    (rows,) = server.rows.values()
    steps = [rows[line]["step"] for line in sorted(rows)]
    assert steps == sorted(steps)  # what had arrived before the break comes twice, at its step
    assert set(steps) == set(range(8)), done.stdout + done.stderr


def train_record(step: int) -> dict[str, Any]:
    figures = {"loss": 1.5, "learning_rate": 0.1, "images_per_second": 100.0, "data_wait": 0.25}
    return {"kind": "train", "epoch": 1, "step": step, "seconds": 1.0} | figures


@pytest.mark.parametrize("mood", ["hangs", "401"])
def test_a_bad_server_costs_a_run_nothing(tmp_path: Path, tiny: Path, images: Path, server: Server, mood: str) -> None:
    """It trains on, ends at once with code 0, and all is in OUT/wandb."""
    out = tmp_path / "out"
    server.mood = mood
    process = begin(
        [tiny, "--data", images, "--out", out, "--backend", "pillow", "--log-every", "2", "--workers", "1"],
        server.address,
    )
    told = process.communicate(timeout=120)[1]
    ended = time.time()
    assert process.returncode == 0, told
    assert "done: 2 epochs" in told
    assert [line["step"] for line in lines(out)] == [1, 2, 4, 5, 5, 7, 9, 10, 10]
    assert ended - (out / "log.jsonl").stat().st_mtime < 15  # bounded, on a busy machine too
    assert "W&B: offline" in told
    assert "W&B: off from here on" not in told
    until(lambda: len(history(out)) == 9)
    assert_told(history(out), out)
    assert_no_secret(out)
    assert KEY not in told


@pytest.mark.parametrize("mood", ["refuses", "slow", "500"])
def test_a_bad_server_costs_no_record(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, mood: str
) -> None:
    caplog.set_level(logging.INFO, "senet")
    server.mood = mood
    address = server.address
    if mood == "refuses":
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"http://127.0.0.1:{free.getsockname()[1]}"
    for name, value in (("WANDB_BASE_URL", address), ("WANDB_API_KEY", KEY), ("NETRC", "/nonexistent")):
        monkeypatch.setenv(name, value)
    tracker = opened(tmp_path, "auto")
    for step in range(100):
        tracker.log(train_record(step))
    tracker.close(True)
    until(lambda: len(history(tmp_path)) == 100)
    assert [row["step"] for row in history(tmp_path)] == list(range(100))
    assert "W&B: offline" in caplog.text
    assert_no_secret(tmp_path)


def test_a_stop_while_the_server_hangs_saves_and_ends_soon(
    tmp_path: Path, tiny: Path, images: Path, server: Server
) -> None:
    """Schedulers kill 30 seconds after TERM."""
    out = tmp_path / "out"
    server.mood = "hangs"
    process = begin(
        [tiny, "epochs=1000", "--data", images, "--out", out, "--backend", "pillow", "--workers", "1"], server.address
    )
    until(lambda: written(out) > 4 and bool(server.asked))
    process.terminate()
    told = process.communicate(timeout=20)[1]
    assert process.returncode == 75, told
    until(lambda: len(history(out)) == len(lines(out)))


def test_without_the_package_a_run_says_so_and_goes_on(tmp_path: Path, tiny: Path, images: Path) -> None:
    hide = (
        "import sys; sys.modules['wandb'] = None; from launch import guard; from launch.train import main; guard(main)"
    )
    words = [tiny, "epochs=1", "--data", images, "--out", tmp_path / "out", "--backend", "pillow", "--track", "wandb"]
    start = [sys.executable, "-c", hide, *map(str, words)]
    done = subprocess.run(
        start, cwd=ROOT, env=environment(WANDB_MODE=""), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "W&B: off (not installed; pip install wandb)" in done.stderr


def test_a_page_that_wandb_does_not_take_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match="nothing of this run went to W&B"):
        attach(RunFolder(tmp_path), tmp_path / "index.html")
    (tmp_path / "wandb_id").write_text("17")
    monkeypatch.setattr("senet.track.wandb.CHECKPOINT_SECONDS", 0.1)
    with pytest.raises(RunError, match="wandb does not answer: TimeoutExpired"):
        attach(RunFolder(tmp_path), tmp_path / "index.html")
