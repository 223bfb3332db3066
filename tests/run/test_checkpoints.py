"""Checkpoints are what the run was when they were asked for, and those that are wanted are kept."""

from __future__ import annotations

from pathlib import Path

import torch

from senet.run import checkpoint
from senet.run.checkpoint import Payload, Progress
from senet.run.saver import Saver
from senet.run.status import best
from senet.system import seal
from senet.system.run_folder import CheckpointFolder
from tests.helpers import lines, run


def test_a_snapshot_is_not_reached_by_what_comes_after(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    saver = Saver(folder, keep=10)
    weights = torch.zeros(1000, 1000)
    for step in range(5):
        weights.fill_(step)
        payload = Payload(Progress(step), {"w": weights}, {"list": [weights, 1, "x"]})
        saver.save(payload, {"top1_error": 50.0 + abs(step - 2)})
    weights.fill_(-1)
    saver.close()
    assert not saver.news()
    for step in range(5):
        payload = checkpoint.read(folder.of_step(step))
        assert payload.net["w"].unique().tolist() == [step]
        assert payload.optimiser["list"][0].unique().tolist() == [step]
        assert payload.optimiser["list"][1:] == [1, "x"]
    assert checkpoint.read(folder.best).net["w"][0, 0] == 2


def test_what_is_kept(tmp_path: Path, tiny: Path, images: Path) -> None:
    """The newest, the best, those of every n-th epoch, and one an hour; each whole."""
    out = tmp_path / "out"
    arguments = [tiny, "epochs=3", "--data", images, "--out", out, "--backend", "pillow", "--save-minutes", 0.00001]
    done = run("launch.train", *arguments, "--keep", 1, "--keep-every", 2, "--keep-hours", 1)
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (out / "checkpoints").glob("*.pt")}
    assert names == {"step-00000015.pt", "best.pt", "epoch-0002.pt", "timed-00000000.pt"}
    reached = {name: checkpoint.read(out / "checkpoints" / name).progress for name in names}
    assert reached["epoch-0002.pt"].epoch == 2
    errors = {line["epoch"]: line["top1_error"] for line in lines(out, kind="val")}
    assert errors[reached["best.pt"].epoch] == min(errors.values()) == best(out)
    age(out / "checkpoints/timed-00000000.pt")
    again = run("launch.train", *arguments, "epochs=4", "--accept-changes", "--keep", 1, "--keep-hours", 1)
    assert again.returncode == 0, again.stderr
    assert len(list((out / "checkpoints").glob("timed-*.pt"))) == 2


def age(path: Path) -> None:
    """Make a checkpoint one of long ago."""
    payload, facts = checkpoint.read(path), seal.facts(path)
    with path.open("wb") as file:
        sealing = seal.Sealing(file)
        torch.save(payload.to_dict(), sealing)
        sealing.seal(facts | {"time": 0.0})
