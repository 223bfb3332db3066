"""The analyses say of a small net what can be computed by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from launch import analyze
from senet import build
from senet.analyze.blocks import blocks, gates
from senet.analyze.excitations import Excitation, record, shown, table
from senet.analyze.gradcam import gradcam
from senet.analyze.prune import prune
from senet.data.source import Source, val_loader
from senet.distributed import World
from senet.errors import UsageError
from senet.run.load import load

CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)


def test_excitations_are_those_of_the_images_of_a_class(trained: Path, images: Path, tmp_path: Path) -> None:
    net, source = load(str(trained)), Source(images, val_batch=50)
    found = record(net, source, ALONE, ["class2", "0"], images=40)
    assert [each.block for each in found] == ["SE_2_1", "SE_3_1"]
    assert found[0].groups == ("class2", "class0", "all")
    loader = val_loader(net.config.data, source, 0, 1, CPU)
    seen, labels = [], []
    with gates(net.net.eval()) as last, torch.inference_mode():
        for batch in loader.batches():
            net.net(batch.images)
            seen.append(last["SE_3_1"])
            labels.append(batch.labels)
    loader.close()
    values, label = torch.cat(seen), torch.cat(labels)
    for group, chosen in enumerate((values[label == 2][:40], values[label == 0][:40], values)):
        np.testing.assert_allclose(found[1].mean[group], chosen.double().mean(0), rtol=1e-5)
        np.testing.assert_allclose(found[1].std[group], chosen.double().std(0, correction=0), rtol=1e-3, atol=1e-6)
    header, rows = table(found)
    assert "paper: all" not in header  # other blocks than the paper's net
    assert rows[1][1] == pytest.approx(values[label == 2][:40].mean().item(), rel=1e-5)
    with pytest.raises(UsageError, match="--classes: no class 'zebra'; there are class0, class1, class2"):
        record(net, source, ALONE, ["zebra"])
    words = ["excitations", str(trained), "--data", str(images), "--images", "5", "--out", str(tmp_path)]
    assert analyze.main(words) == 0
    with Image.open(tmp_path / "excitations.png") as picture:
        assert picture.width > 1000
    assert (tmp_path / "excitations.md").read_text().startswith("| block | class0 | class1 | class2 | all |")


def test_the_papers_blocks_are_shown_beside_its_figures() -> None:
    names = [f"SE_{stage}_{n + 1}" for stage, count in ((2, 3), (3, 4), (4, 6), (5, 3)) for n in range(count)]
    with torch.device("meta"):
        assert list(blocks(timm.create_model("legacy_seresnet50"))) == names
        assert list(blocks(timm.create_model("seresnet50"))) == names
        with pytest.raises(UsageError, match="no SE block"):
            blocks(timm.create_model("resnet18"))
    found = [Excitation(name, ("a", "b", "all"), np.full((3, 8), 0.99), np.zeros((3, 8))) for name in names]
    assert [each.block for each in shown(found)] == ["SE_2_3", "SE_3_4", "SE_4_6", "SE_5_1", "SE_5_2", "SE_5_3"]
    header, rows = table(found)
    last = dict(zip(header, rows[-1], strict=True))
    assert (last["saturated %"], last["paper: all"]) == (100, 0.159)


def test_two_blocks_of_a_unit_have_names_of_their_own() -> None:
    net = build("se_shake_shake26_2x96d", "net.blocks=[1,2]", "net.width=8", "net.se={place: branches}")
    assert list(blocks(net)) == ["SE_2_1_1", "SE_2_1_2", "SE_3_1_1", "SE_3_1_2", "SE_3_2_1", "SE_3_2_2"]


def test_pruning_counts_what_it_saves_and_costs(trained: Path, images: Path) -> None:
    net, source = load(str(trained)), Source(images)
    block = blocks(net.net)["SE_3_1"]
    whole, means, ones = prune(net, source, ALONE, None)
    assert [row[0] for row in (whole, means, ones)] == ["none", "3", "3"]
    assert means[2] == sum(p.numel() for p in block.parameters())
    for p in block.parameters():
        p.data.zero_()
    block.up.bias.data.fill_(100.0)  # type: ignore[union-attr]  # gates of 1
    closed = prune(net, source, ALONE, [3])
    assert [row[3:] for row in closed] == [ones[3:]] * 3
    with pytest.raises(UsageError, match="--stages 5: has no SE block; there are stages 2, 3"):
        prune(net, source, ALONE, [5])


def test_gradcam_finds_what_speaks_for_a_class(trained: Path, images: Path, tmp_path: Path) -> None:
    bright = nn.Conv2d(3, 2, 1, bias=False)
    bright.weight.data = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]])[..., None, None]
    net = nn.Sequential(bright, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2, bias=False))
    net[3].weight.data = torch.eye(2)
    image = torch.zeros(1, 3, 8, 8)
    image[0, 0, 1, 6], image[0, 1, 5, 2] = 1.0, 1.0  # red speaks for class 0, green for class 1
    for label, place in ((0, (1, 6)), (1, (5, 2))):
        maps, _ = gradcam(net, image.clone(), label)
        assert maps[(0, *place)] == maps.max() == 1
        assert maps.sum() == 1
    files = [str(file) for file in sorted((images / "val/class0").iterdir())[:3]]
    words = ["gradcam", str(trained), *files, "--class", "class1", "--backend", "pillow"]
    assert analyze.main([*words, "--out", str(tmp_path / "cam.png")]) == 0
    with Image.open(tmp_path / "cam.png") as picture:
        assert picture.width > 1000
