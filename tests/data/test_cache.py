"""Images kept decoded in memory give the batches that they give from the disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from senet.config import Cifar10, Folder
from senet.data.source import Source, list_images, train_loader, val_loader
from senet.errors import UsageError
from tests.helpers import assert_same, final, records, run

CPU = torch.device("cpu")
FOLDER = Folder(classes=3, crop=32, resize=40)


def test_batches_are_the_same_to_the_bit(few_images: Path) -> None:
    for file in sorted((few_images / "train").glob("*/*.JPEG"))[::6]:
        file.write_bytes(b"no image")
    plain = Source(few_images, "pillow", workers=1)
    kept = replace(plain, backend="auto", cache="ram", workers=2)
    list_images(FOLDER, kept, lambda value: [value])
    found = []
    for source in (plain, kept):
        train = train_loader(FOLDER, source, 12, 12, 0, 0, 1, CPU)
        val = val_loader(FOLDER, source, 0, 1, CPU)
        batches = [*train.batches(0, 0), *train.batches(1, 0), *val.batches()]
        images = [(batch.images, batch.labels, torch.from_numpy(batch.keys)) for batch in batches]
        found.append((images, dict(train.bad), train.fingerprint, train.description, val.description, train.names(1)))
        train.close()
        val.close()
    assert len(found[0][1]) > 2
    assert_same(*found)
    for file in few_images.glob("*/*/*.JPEG"):
        file.write_bytes(b"")  # nothing is read again
    val = val_loader(FOLDER, replace(kept, val_batch=5), 0, 1, CPU)
    assert sum(len(batch.labels) for batch in val.batches()) == 9
    val.close()


def test_what_cannot_be_kept_is_refused(tmp_path: Path, images: Path, cifar: Path) -> None:
    """Three hundred images of a quarter of a gigabyte do not fit."""
    large = tmp_path / "train/class0/000.png"
    for label in range(3):
        for folder in (tmp_path / "train" / f"class{label}", tmp_path / "val" / f"class{label}"):
            folder.mkdir(parents=True)
            if not large.exists():
                Image.new("1", (9_000, 9_000)).save(large)
            for number in range(1, 50):
                (folder / f"{number:03}.png").hardlink_to(large)
    with pytest.raises(UsageError, match=r"295 images take about 71.7 GB decoded, and .* are free; leave it out, or"):
        list_images(FOLDER, Source(tmp_path, cache="ram"), lambda value: [value])
    with pytest.raises(UsageError, match="--backend pillow would have no effect with --cache"):
        list_images(FOLDER, Source(images, "pillow", cache="ram"), lambda value: [value])
    with pytest.raises(UsageError, match="--cache ram would have no effect: cifar10 is held in memory"):
        val_loader(Cifar10(), Source(cifar, cache="ram"), 0, 1, CPU)


@pytest.mark.slow
def test_two_ranks_share_what_they_decode(trained: Path, images: Path, tmp_path: Path) -> None:
    words = [trained.parent / "tiny.yaml", "--data", images, "--cache", "ram", "--out", tmp_path / "out"]
    done = run("launch.train", *words, ranks=2)
    assert done.returncode == 0, done.stderr
    assert_same(final(trained)["net"], final(tmp_path / "out")["net"])
    assert records(trained) == records(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.full
def test_killed_and_started_again_beside_another_run(trained: Path, images: Path, tmp_path: Path) -> None:
    words = [trained.parent / "tiny.yaml", "--data", images, "--cache", "ram", "--out", tmp_path / "out"]
    assert run("launch.train", *words, ranks=2, SENET_FAULTS="kill@1:7").returncode == 1
    beside = run("launch.evaluate", trained, "--data", images, "--cache", "ram", "--ten-crop", "--crop", "32,24")
    assert beside.returncode == 0, beside.stderr
    again = run("launch.train", *words, ranks=2, restarts=1, SENET_FAULTS="kill@1:9")
    assert again.returncode == 0, again.stderr
    assert_same(final(trained)["net"], final(tmp_path / "out")["net"])
