"""Runs that begin with trained weights: what is taken over, made anew, frozen, and learns faster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from launch import train
from senet.config import Config, from_dict, to_dict
from senet.distributed import World
from senet.errors import UsageError
from senet.execution.execution import Execution
from senet.models import build
from senet.run import initial
from senet.train.finetune import Frozen
from senet.train.optimiser import learning_rate, set_learning_rate
from senet.train.trainer import Trainer
from senet.weights import files
from tests.helpers import events, final

NET = {"block": "basic", "blocks": [1, 1], "widths": [8, 16], "expansion": 1, "stem": "cifar", "se": {"ratio": 4}}


def config(**more: Any) -> Config:
    data = {"set": "cifar10"}
    return from_dict({"net": NET, "data": data, "schedule": {"milestones": []}, "batch": 20, "epochs": 1, **more})


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights for a hundred classes, in a file of this project."""
    torch.manual_seed(7)
    settings = config(data={"set": "cifar100"})
    path = tmp_path_factory.mktemp("weights") / "hundred.safetensors"
    files.write(path, build(settings.net, 100).state_dict(), {"config": to_dict(settings)})
    return path


def test_a_run_begins_with_weights_and_leaves_frozen_parts_alone(
    pretrained: Path, cifar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tune.yaml").write_text(yaml.safe_dump(to_dict(config())))
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(pretrained.read_bytes())
    command = [str(tmp_path / "tune.yaml"), "finetune.freeze=[stem,2]", "finetune.head_lr=5", "--data", str(cifar)]
    command += ["--no-checksum", "--device", "cpu", "--out", str(tmp_path / "out"), "--init", str(moved)]
    assert train.main(command) == 0
    said = "the classifier is made anew for 10 classes"
    assert said in capsys.readouterr().err
    assert any(said in event.get("init", "") for event in events(tmp_path / "out"))
    before, after = files.read(pretrained).state, final(tmp_path / "out")["net"]
    for name, value in before.items():
        same = name in after and after[name].shape == value.shape and torch.equal(after[name], value)
        assert same == name.startswith(("stem.", "stages.stage2.")), name

    moved.unlink()  # a run that goes on needs it no more
    again = [*command, "epochs=2", "--accept-changes"]
    assert train.main(again) == 0
    assert all(torch.equal(final(tmp_path / "out")["net"][name], before[name]) for name in before if "stage2" in name)


def test_the_classifier_learns_at_its_own_rate() -> None:
    for frozen in ([], ["stem", 2, 3]):
        settings = config(finetune={"freeze": frozen, "head_lr": 5.0})
        trainer = Trainer.build(settings, World(0, 1, torch.device("cpu")), Execution(), Frozen())
        set_learning_rate(trainer.optimiser, 0.25)
        rates = {p: group["lr"] for group in trainer.optimiser.param_groups for p in group["params"]}
        assert learning_rate(trainer.optimiser) == 0.25
        assert [rates[p] for p in trainer.net.fc.parameters()] == [1.25, 1.25]
        assert set(rates) == {p for p in trainer.net.parameters() if p.requires_grad}
        assert set(rates.values()) == ({1.25} if frozen else {0.25, 1.25})


def test_weights_of_another_net_or_other_classes(pretrained: Path, tmp_path: Path) -> None:
    for net, reason in (({"se": {"gate": "tanh"}}, "net.se.gate: sigmoid -> tanh"), ({"stem": "conv7x7"}, "net.stem")):
        settings = config(net=NET | net)
        with pytest.raises(UsageError, match=reason):
            initial.begin(build(settings.net, 10), settings, (), str(pretrained))
    settings = config()
    own = build(settings.net, 10).state_dict()
    files.write(tmp_path / "named.pt", own, {"config": to_dict(settings), "classes": ["cat", "dog", *"abcdefgh"]})
    for classes, kept in (((), True), (("dog", "cat", *"abcdefgh"), False), (("Cat", "dog", *"abcdefgh"), True)):
        net = build(settings.net, 10)
        assert ("is kept" in initial.begin(net, settings, classes, str(tmp_path / "named.pt"))) == kept
        assert torch.equal(net.fc.weight, own["fc.weight"]) == kept
    with pytest.raises(UsageError, match=r"finetune\.freeze: 5 is no part of this net; it has stem, 2, 3"):
        Trainer.build(config(finetune={"freeze": [5]}), World(0, 1, torch.device("cpu")), Execution())


def test_nets_of_timm_take_their_own_weights(tmp_path: Path) -> None:
    settings = config(net={"timm": "resnet10t"}, data={"classes": 5, "crop": 64, "resize": 72})
    torch.manual_seed(3)
    other = build(settings.net, 9).state_dict()  # a net that this project has not
    torch.save({"state_dict": other}, tmp_path / "t.pth")
    net = build(settings.net, 5)
    assert "made anew for 5 classes" in initial.begin(net, settings, (), str(tmp_path / "t.pth"))
    assert torch.equal(net.state_dict()["layer1.0.conv1.weight"], other["layer1.0.conv1.weight"])
