"""Killed anywhere and started again, a run ends with the very bits of one that was left alone."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.helpers import ROOT, assert_same, command, environment, final, records, run

AUGMENT = [
    "mixup=0.2",
    "cutmix=1",
    "color_jitter=[0.4,0.4,0.4,0.1]",
    "repeats=2",
    "balance=true",
    "erase=0.3",
    "rotate=10",
]
BACKENDS = {
    "augmented shards": ["--backend", "dali", *(f"data.augment.{setting}" for setting in AUGMENT)],
    "dali": ["--backend", "dali"],
    "pillow": ["--backend", "pillow"],
    "cifar": ["data.set=cifar10"],
}


def words(tiny: Path, data: Path, out: Path, backend: str) -> list[object]:
    every_step = ["--save-minutes", "0.00001", "--log-every", "2", "--keep", "100", "--workers", "1"]
    return [tiny, *BACKENDS[backend], "--data", data, "--out", out, *every_step]


def kill_after(arguments: list[object], out: Path, step: int, ranks: int) -> None:
    """Start a run and SIGKILL all of it once the checkpoint of `step` is there."""
    with subprocess.Popen(command("launch.train", *arguments, ranks=ranks), cwd=ROOT, env=environment(),
            start_new_session=True,
                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:  # fmt: skip
        target = out / f"checkpoints/step-{step:08d}.pt.json"
        deadline = time.monotonic() + 120
        while not target.exists():
            assert time.monotonic() < deadline
            assert process.poll() is None, "ended before it could be killed"
            time.sleep(0.002)
        children = subprocess.run(["pgrep", "-f", str(out)], capture_output=True, text=True, check=False).stdout.split()
        subprocess.run(["kill", "-KILL", *children], check=False, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("backend", BACKENDS)
def test_killed_and_resumed_equals_undisturbed(
    tmp_path: Path, tiny: Path, images: Path, cifar: Path, shards: Path, backend: str
) -> None:
    data = {"cifar": cifar, "augmented shards": shards}.get(backend, images)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run("launch.train", *words(tiny, data, whole, backend), ranks=2).returncode == 0
    kill_after(words(tiny, data, broken, backend), broken, 3, ranks=2)
    assert not (broken / f"checkpoints/step-{int(final(whole)['progress']['images']) // 12:08d}.pt").exists(), (
        "killed too late"
    )
    again = run("launch.train", *words(tiny, data, broken, backend), ranks=2)
    assert again.returncode == 0, again.stderr
    assert "resumed" in again.stderr
    one, other = final(whole), final(broken)
    assert_same(one, other)
    assert records(whole) == records(broken)


@pytest.mark.parametrize("ranks", [1, 3])
def test_resume_on_another_number_of_ranks_ends_at_the_same_place(
    tmp_path: Path, tiny: Path, shards: Path, ranks: int
) -> None:
    out = tmp_path / "out"
    kill_after(words(tiny, shards, out, "augmented shards"), out, 3, ranks=2)
    done = run("launch.train", *words(tiny, shards, out, "augmented shards"), ranks=ranks)
    assert done.returncode == 0, done.stderr
    progress = final(out)["progress"]
    assert (progress["epoch"], progress["images"]) == (2, 120)


def test_other_images_are_refused_and_other_pixels_warned_of(tmp_path: Path, tiny: Path, images: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(images, data)
    arguments = [tiny, "--data", data, "--out", out]
    kill_after([*arguments, "--save-minutes", "0.00001"], out, 2, ranks=1)
    (data / "train/class0/new.JPEG").write_bytes((data / "train/class0/000.JPEG").read_bytes())
    refused = run("launch.train", *arguments)
    assert refused.returncode == 2
    assert "other images than those" in refused.stderr
    (data / "train/class0/new.JPEG").unlink()
    other = run("launch.train", *arguments, "--backend", "pillow")
    assert other.returncode == 0
    assert "warning: other pixels than before: backend was 'dali-cpu', is now 'pillow'" in other.stderr


def test_stop_request_saves_and_exits_with_75_and_goes_on(tmp_path: Path, tiny: Path, images: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    arguments = ["epochs=12", "--data", images, "--log-every", "2", "--workers", "1", "--backend", "pillow"]
    assert run("launch.train", tiny, *arguments, "--out", whole).returncode == 0
    with subprocess.Popen(command("launch.train", tiny, *arguments, "--out", stopped), cwd=ROOT, env=environment(),
                          stderr=subprocess.PIPE, text=True) as process:  # fmt: skip
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("epoch 2"):
                process.send_signal(signal.SIGTERM)
                break
        rest = process.stderr.read()
    assert process.returncode == 75, rest
    assert "the same command goes on from here" in rest
    assert run("launch.train", tiny, *arguments, "--out", stopped).returncode == 0
    assert_same(final(whole), final(stopped))
    assert records(whole) == records(stopped)


def test_a_finished_run_says_so(tmp_path: Path, tiny: Path, images: Path) -> None:
    arguments = [tiny, "--data", images, "--out", tmp_path / "out"]
    first = run("launch.train", *arguments)
    assert first.returncode == 0, first.stderr
    before = (tmp_path / "out/log.jsonl").read_text()
    second = run("launch.train", *arguments)
    assert second.returncode == 0
    assert "done: 2 epochs" in second.stderr
    assert (tmp_path / "out/log.jsonl").read_text() == before
