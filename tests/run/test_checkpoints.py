"""Checkpoints are what the run was when they were asked for."""

from __future__ import annotations

from pathlib import Path

import torch

from senet.run import checkpoint
from senet.run.checkpoint import Payload, Progress
from senet.run.saver import Saver
from senet.system.run_folder import CheckpointFolder


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
