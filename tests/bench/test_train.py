"""The bench of whole trainings measures what it says, and its peers train; how fast is no test."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import pytest

from senet.bench import peers, train
from senet.bench.peers import Taken
from senet.config import Config
from senet.system.timing import Spread
from tests.helpers import run

FOLDER, CIFAR = train.NETS


def prepared(name: str, folder: Path, **given: object) -> Config:
    """Prepare a start for two steps of four images an epoch, of two epochs."""
    parser = argparse.ArgumentParser()
    train.add_flags(parser)
    args = parser.parse_args([name, "--crop", "32", "--batch", "4", "--steps", "2"])
    vars(args).update(given)
    return train._prepare(name, args, folder)


def test_a_run_of_ours_is_timed(images: Path, tmp_path: Path) -> None:
    prepared(FOLDER, tmp_path, data=images)
    done = run("senet.bench.peers", "ours", tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(value > 0 for value in json.loads(done.stdout.splitlines()[-1]).values())


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # timm leaves images open
@pytest.mark.parametrize("name", peers.PEERS)
def test_peers_train_the_net_on_the_images(name: str, cifar: Path, images: Path, tmp_path: Path) -> None:
    prepared(CIFAR, tmp_path, cifar=cifar)
    assert all(value > 0 for value in asdict(peers.measure(name, tmp_path)).values())
    settings = prepared(FOLDER, tmp_path / "folder", data=images)
    peer = peers.PEERS[name](settings, tmp_path / "folder" / "data")
    assert (peer.images, peer.val_images) == (8, 4)
    before, steps = next(peer.net.parameters()).clone(), []
    peer.train(lambda: steps.append(None))
    assert len(steps) == 2
    assert not before.equal(next(peer.net.parameters()))
    peer.validate()
    assert not peer.net.training


def test_ratios_are_of_one_round_and_a_failure_is_told() -> None:
    def rounds(*values: float) -> list[Taken | str]:
        return [Taken(value, 1.0, 1.0, 1.0) for value in values]

    found = {"ours": rounds(1.0, 4.0, 2.0), "timm": rounds(2.0, 4.0, 1.0)}
    row = train._joined("net", "training", "timm", found)
    assert row.value == Spread(2.0, 1.0, 4.0, 3)
    assert row.facts["ours, times this"] == Spread(1.0, 0.5, 2.0, 3)
    found["timm"][1] = "no timm"
    assert train._joined("net", "training", "timm", found).failure == "no timm"
