"""Validation: every image once, shown to the net in the view that was asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from senet.config import Cifar10, Folder
from senet.data.source import Source, val_loader
from senet.distributed import World
from senet.errors import UsageError
from senet.run.changes import check_pixels
from senet.train.evaluate import Pass, View, evaluate, fused
from senet.train.predictions import Predictions, by_class, interval, pairs
from senet.train.real import read, real_errors
from tests.train.test_step import CONFIG, CPU, trainer_of

ALONE = World(0, 1, CPU)


def shown(**settings: int) -> list[tuple[Tensor, Tensor]]:
    """The validation images and labels, in batches."""
    loader = val_loader(replace(CONFIG.data, **settings), Source(val_batch=4), 0, 1, CPU)
    try:
        return [(batch.images, batch.labels) for batch in loader.batches()]
    finally:
        loader.close()


def test_the_mean_of_probabilities_over_views_and_nets_counts() -> None:
    nets = [trainer_of(replace(CONFIG, seed=seed)).net.eval() for seed in (0, 1)]
    images, labels = (torch.cat(parts) for parts in zip(*shown(), strict=True))
    with torch.inference_mode():
        seen = [net(picture).softmax(1) for net in nets for picture in (images, images.flip(3))]
        mean = torch.stack(seen).mean(0)
    passes = []
    for number, net in enumerate(nets):
        passes.append(Pass())
        loader = val_loader(CONFIG.data, Source(val_batch=4), 0, 1, CPU)
        errors = evaluate(net, loader, CONFIG, ALONE, view=View(flip=True), keep=passes[-1].keep)
        loader.close()
        own = torch.stack(seen[2 * number : 2 * number + 2]).mean(0)
        assert errors["top1_error"] == pytest.approx(100 * (own.argmax(1) != labels).float().mean().item())
    errors, predictions = fused(passes, ALONE)
    assert errors["images"] == len(predictions) == 10
    assert errors["loss"] == pytest.approx(F.nll_loss(mean.log(), labels).item(), rel=1e-5)
    assert errors["top1_error"] == pytest.approx(100 * (1 - predictions.right.mean()))
    np.testing.assert_allclose(predictions.probabilities, mean.topk(predictions.top.shape[1]).values, rtol=1e-5)
    np.testing.assert_allclose(predictions.of_label, mean[range(10), labels], rtol=1e-5)


def test_views_cut_out_what_they_say() -> None:
    data = Folder(crop=224, resize=256)
    assert View(crop=320).of(data) == View(320, 365)  # the config's ratio
    assert View(resize=288).of(data) == View(224, 288)
    ten = View(ten_crop=True).of(data)
    assert (ten.data(data).crop, ten.data(data).resize) == (256, 256)
    images = torch.arange(256 * 256).reshape(1, 1, 256, 256).float()
    cut = ten.pictures(images)
    assert {picture.shape for picture in cut} == {(1, 1, 224, 224)}
    corners = [int(picture[0, 0, 0, 0]) for picture in cut[:5]]
    assert corners == [0, 32, 32 * 256, 32 * 256 + 32, 16 * 256 + 16]
    assert all(torch.equal(mirrored, picture.flip(3)) for picture, mirrored in zip(cut[:5], cut[5:], strict=True))
    with pytest.raises(UsageError, match="--crop 300 is larger than --resize 256"):
        View(300, 256).of(data)
    with pytest.raises(UsageError, match="cifar10 is shown whole"):
        View(ten_crop=True).of(Cifar10())


def test_classes_and_confusions_are_counted() -> None:
    labels, taken = np.array([0, 0, 0, 0, 1, 1, 2]), np.array([0, 1, 1, 2, 1, 0, 2])
    of_label = np.array([0.9, 0.1, 0.2, 0.3, 0.6, 0.05, 0.9])
    top = np.stack([taken, (taken + 1) % 4], 1)
    found = Predictions(np.arange(7), labels, top, np.zeros((7, 2)), of_label)
    cat, dog, bird = by_class(found, 4)
    assert (cat.images, cat.error, cat.precision, cat.taken_for) == (4, 75, 50, 1)
    assert (dog.images, dog.error, dog.top5_error, dog.taken_for) == (2, 50, 0, 0)
    assert (bird.error, bird.precision, bird.taken_for) == (0, 50, None)
    assert pairs(found, 4) == [(0, 1, 2), (0, 2, 1), (1, 0, 1)]
    assert found.worst(2).images.tolist() == [5, 1]
    joined = Predictions.joined([found.take(np.array([5, 6])), Predictions.none(), found.take(np.arange(5))])
    assert joined.images.tolist() == list(range(7))
    low, high = interval(23.29, 50_000)  # Wilson's, as statsmodels gives it
    assert (round(low, 2), round(high, 2)) == (22.92, 23.66)
    assert interval(0.0, 10) == (0.0, pytest.approx(27.75, abs=0.01))


def test_other_labels_of_imagenet_count(tmp_path: Path) -> None:
    """ReaL's lists of labels, and the folders of V2, which are numbers."""
    file = tmp_path / "real.json"
    file.write_text("[[0, 7], [], [217], [3]]")
    folders = ("n02102040", "n01440764")  # English springer, 217; tench, 0
    files = ["val/n01440764/ILSVRC2012_val_00000001.JPEG", "a.tar/ILSVRC2012_val_00000002", "ILSVRC2012_val_00000003"]
    taken = np.array([1, 0, 1])  # tench: in the list; no label; tench for a springer
    found = Predictions(np.arange(3), np.array([0, 0, 0]), taken[:, None], np.zeros((3, 1)), np.zeros(3))
    lists = read(file)
    assert real_errors(found, files.__getitem__, folders, lists) == {"real_top1_error": 50, "real_images": 2}
    with pytest.raises(UsageError, match="labels none of the images"):
        real_errors(found, lambda image: "cat.JPEG", folders, lists)
    file.write_text("{")
    with pytest.raises(UsageError, match="not a JSON list"):
        read(file)
    check_pixels({"classes": ["n01440764", "n01443537"]}, {"classes": ["0", "1"]})
    with pytest.raises(UsageError, match="label 1 is '10' here"):
        check_pixels({"classes": ["n01440764", "n01443537"]}, {"classes": ["0", "10"]})
