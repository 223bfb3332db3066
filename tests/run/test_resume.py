"""Killed anywhere and started again, a run ends with the very bits of one that was left alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from senet.run import checkpoint
from senet.run.load import load
from senet.system.run_folder import RunFolder, facts_of
from tests.helpers import assert_same, final, records, run

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
    "augmented shards": [
        *("--backend", "dali", "precision=bf16", "optim={timm: muon, lr: 0.01}"),
        *(f"data.augment.{setting}" for setting in AUGMENT),
    ],
    "pillow": ["--backend", "pillow", "bn.freeze=1", "optim=lamb"],  # whose state is partly on the host, and per group
    # With an average of the weights, BN statistics computed anew, and a learning rate that falls after each epoch whose
    # loss is not a tenth of the best: the third epoch's is that of the first two losses.
    "cifar": [
        *("data.set=cifar10", "epochs=3", "ema.decay=0.9", "bn.recalibrate=2"),
        *("schedule=plateau", "schedule.patience=0", "schedule.threshold=0.9"),
    ],
}


def words(tiny: Path, data: Path, out: Path, backend: str) -> list[object]:
    every_step = ["--save-minutes", "0.00001", "--log-every", "2", "--keep", "100", "--workers", "1"]
    return [tiny, *BACKENDS[backend], "--data", data, "--out", out, *every_step]


@pytest.mark.parametrize("backend", BACKENDS)
def test_killed_and_resumed_equals_undisturbed(
    tmp_path: Path, tiny: Path, images: Path, cifar: Path, shards: Path, backend: str
) -> None:
    data = {"cifar": cifar, "augmented shards": shards}.get(backend, images)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run("launch.train", *words(tiny, data, whole, backend), ranks=2).returncode == 0
    assert run("launch.train", *words(tiny, data, broken, backend), ranks=2, SENET_FAULTS="kill@1:7").returncode == 1
    again = run("launch.train", *words(tiny, data, broken, backend), ranks=2)
    assert again.returncode == 0, again.stderr
    assert "resumed" in again.stderr
    assert_same(final(whole), final(broken))
    assert records(whole) == records(broken)
    if backend == "cifar":
        rates = {record["epoch"]: record["learning_rate"] for record in records(whole) if record["kind"] == "train"}
        assert rates == {1: 0.05, 2: 0.05, 3: pytest.approx(0.005)}
        errors = [record["ema_top1_error"] for record in records(whole) if record["kind"] == "val"]
        assert facts_of(RunFolder(whole).checkpoints.best)["top1_error"] == min(errors)
        payload = checkpoint.read(RunFolder(whole).checkpoints.best)
        assert_same(dict(load(str(whole)).net.state_dict()), payload.hooks["EMA"]["net"])
        assert_same(dict(load(str(whole), ema=False).net.state_dict()), payload.net)


def test_other_images_are_refused_and_other_pixels_warned_of(tmp_path: Path, tiny: Path, images: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(images, data)
    arguments = [tiny, "--data", data, "--out", out]
    assert run("launch.train", *arguments, SENET_FAULTS="term@0:2").returncode == 75
    (data / "train/class0/new.JPEG").write_bytes((data / "train/class0/000.JPEG").read_bytes())
    refused = run("launch.train", *arguments)
    assert refused.returncode == 2
    assert "other training images than those" in refused.stderr
    (data / "train/class0/new.JPEG").unlink()
    other = run("launch.train", *arguments, "--backend", "pillow")
    assert other.returncode == 0
    assert "warning: other pixels than before: backend was 'dali-cpu', is now 'pillow'" in other.stderr


def test_stop_request_saves_and_exits_with_75_and_goes_on(tmp_path: Path, tiny: Path, images: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    arguments = [tiny, "--data", images, "--log-every", "2", "--workers", "1", "--backend", "pillow"]
    assert run("launch.train", *arguments, "--out", whole).returncode == 0
    done = run("launch.train", *arguments, "--out", stopped, SENET_FAULTS="term@0:7")
    assert done.returncode == 75, done.stderr
    assert "the same command goes on from here" in done.stderr
    assert run("launch.train", *arguments, "--out", stopped).returncode == 0
    assert_same(final(whole), final(stopped))
    assert records(whole) == records(stopped)
