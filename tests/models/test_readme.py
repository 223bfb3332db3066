"""The page of the networks: what it shows is what happens."""

from __future__ import annotations

import doctest
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image

import senet
from senet import config, models
from senet.run import checkpoint
from senet.system.run_folder import RunFolder
from tests.helpers import ROOT

CLASSES = ["airplane", "automobile", "truck"]


def test_examples_of_the_page_are_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    settings = config.load("cifar10/se_resnet20", ["data=folder", "data.classes=3", "data.crop=32", "data.resize=36"])
    payload = checkpoint.Payload(
        checkpoint.Progress(),
        models.build(settings.net, 3).state_dict(),
        config=config.to_dict(settings),
        execution={"layout": "channels_last"},
        pixels={"classes": CLASSES},
    )
    folder = RunFolder(tmp_path / "runs/se20").checkpoints
    folder.path.mkdir(parents=True)
    checkpoint.write(payload, {}, [folder.best])
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "truck.jpg")
    torch.save(timm.create_model("seresnet18", num_classes=10).state_dict(), tmp_path / "seresnet18.pth")
    monkeypatch.chdir(tmp_path)
    done = doctest.testfile(str(ROOT / "senet/models/README.md"), module_relative=False)
    assert done.attempted >= 13
    assert not done.failed

    # torchvision's transforms are how others prepare images
    see = senet.preprocess(senet.load("runs/se20"))
    image = Image.open("truck.jpg").convert("RGB")
    steps = torchvision.transforms.Compose(
        [
            torchvision.transforms.Resize(36),
            torchvision.transforms.CenterCrop(32),
            torchvision.transforms.ToTensor(),
            torchvision.transforms.Normalize(settings.data.mean, settings.data.std),
        ]
    )
    assert torch.allclose(see("truck.jpg"), steps(image), atol=1e-6)
    assert torch.equal(see(image), see(Path("truck.jpg").read_bytes()))
