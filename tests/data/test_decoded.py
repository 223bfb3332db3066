"""Images stored as pixels: as PIL would make them of the same pixels, readable by others, damage named."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from launch.prepare import main
from senet.config import Folder, FolderAugment
from senet.config.schema import AutoAugment, Grow
from senet.data.loader import Loader
from senet.data.pixels import stored_size
from senet.data.resize import Buffers
from senet.data.source import Source, train_loader, val_loader
from senet.data.storage.find import listing
from senet.data.storage.tars import Tars
from senet.errors import RunError, UsageError
from senet.prepare.encoding import Encoding
from tests.drills import ledger
from tests.helpers import final, lines, run

CPU = torch.device("cpu")
FOLDER = Folder(classes=3, crop=32, resize=40)


def made(root: Path, data: Folder, backend: str, training: bool = True, epoch: int = 0) -> tuple[Loader, torch.Tensor]:
    """A loader, closed, and the pixels [n, 3, H, W] of an epoch in levels of 255."""
    source = Source(root, backend, workers=1)
    if training:
        train = train_loader(data, source, 12, 12, 0, 0, 1, CPU)
        loader, batches = train, list(train.batches(epoch, 0))
    else:
        val = val_loader(data, source, 0, 1, CPU)
        loader, batches = val, list(val.batches())
    loader.close()
    std, mean = (torch.tensor(part).view(3, 1, 1) for part in (data.std, data.mean))
    return loader, 255 * (torch.cat([batch.images for batch in batches]) * std + mean)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_pixels_are_those_of_pil(decoded: Path, interpolation: str, training: bool) -> None:
    """torch rounds the weights of its resize to 8 bits, PIL to 22: a level here and there. 203 images are resized."""
    data = replace(FOLDER, interpolation=interpolation)
    loader, ours = made(decoded, data, "auto", training)
    assert loader.description["backend"] == "decoded"
    levels = (ours - made(decoded, data, "pillow", training)[1]).abs()
    assert levels.mean() < 0.05
    assert (levels > 1.01).float().mean() < 1e-4
    assert levels.max() < 3


def test_all_other_ways_lead_there_too(decoded: Path) -> None:
    """DALI on the same shards, progressive resizing, an augmentation policy, more threads than images."""
    plain = made(decoded, FOLDER, "auto")[1]
    assert (plain - made(decoded, FOLDER, "dali")[1]).abs().mean() < 0.5
    grown = replace(FOLDER, augment=FolderAugment(grow=Grow(start=16, epochs=2)))
    assert [made(decoded, grown, "auto", epoch=epoch)[1].shape[-1] for epoch in (0, 2)] == [16, 32]
    policy = replace(FOLDER, augment=FolderAugment(policy=AutoAugment("trivialaugment")))
    changed = made(decoded, policy, "auto")[1]
    assert (changed - made(decoded, policy, "pillow")[1]).abs().mean() < 0.5
    assert (changed - plain).abs().mean() > 5
    many = train_loader(FOLDER, Source(decoded, workers=70), 12, 12, 0, 0, 1, CPU)
    assert sum(len(batch.labels) for epoch in (0, 1) for batch in many.batches(epoch, 0)) == 120
    many.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset does not close its files
def test_others_read_the_shards(images: Path, decoded: Path) -> None:
    (shard,) = Tars.find(decoded, "train")
    assert f"{hashlib.sha256(shard.read_bytes()).hexdigest()}  {shard.name}\n" == (
        shard.with_name("SHA256SUMS").read_text()
    )
    index, originals = listing(decoded, "train"), listing(images, "train")
    assert index.fingerprint == originals.fingerprint
    shapes = index.storage.columns["shapes"]
    assert np.array_equal(shapes, Tars.scan(decoded, "train").storage.columns["shapes"])
    assert (shapes[:, 0] > 0).sum() == 42  # of 62
    assert shapes.min(1).max() == 64
    stored = webdataset.WebDataset(str(shard), shardshuffle=False, empty_check=False).decode("rgb8")
    pixels = {sample["__key__"]: sample["ppm"] for sample in stored if "ppm" in sample}
    for image in np.flatnonzero(shapes[:, 0])[:5]:
        with Image.open(io.BytesIO(originals.storage.read(image))) as original:
            size = tuple(shapes[image, ::-1].tolist())
            right = np.asarray(original if original.size == size else original.resize(size, Image.Resampling.LANCZOS))
        assert np.array_equal(pixels[index.storage.names[image].removesuffix(".ppm")], right)


def test_whole_images_are_the_originals_and_damage_is_named(few_images: Path, tmp_path: Path) -> None:
    """Images of no other size give the same validation. A JPEG among pixels cannot be decoded; a shard gets shorter
    than its list.
    """
    files = sorted((few_images / "train").glob("*/*.JPEG"))[::6]
    for file in files:
        file.write_bytes(b"no image")
    words = ["--decoded", "--shrink-val", "--processes", "1"]
    assert main(["shards", str(few_images), str(tmp_path / "set"), *words]) == 0
    assert torch.equal(made(tmp_path / "set", FOLDER, "auto", False)[1], made(few_images, FOLDER, "pillow", False)[1])
    loader, pixels = made(tmp_path / "set", FOLDER, "auto")
    bad = {path.rpartition(":")[2] for path in loader.bad}
    assert bad
    assert bad <= {f"{file.parent.name}/{file.stem}.jpg" for file in files}
    assert len(pixels) == 24
    (shard,) = Tars.find(tmp_path / "set", "train")
    train = train_loader(FOLDER, Source(tmp_path / "set", workers=1), 3, 3, 0, 0, 1, CPU)
    batches = train.batches(0, 0)
    next(batches)
    with shard.open("r+b") as file:  # in the midst of an epoch
        file.truncate(shard.stat().st_size * 3 // 5)
    assert sum(len(batch.labels) for batch in batches) == 24
    assert any(f"{shard}:" in path and "the archive ends before" in why for path, why in train.bad.items())
    train.bad.limit = 0
    with pytest.raises(RunError, match=r"train-000000.tar:.*: the archive ends before its \d+ bytes"):
        list(train.batches(1, 0))
    train.close()


def test_memory_of_batches_is_used_again_when_nobody_has_it() -> None:
    buffers = Buffers()
    first = buffers.take(2, 3)
    part, where = first[1:], first.data_ptr()
    del first
    assert buffers.take(2, 3).data_ptr() != where  # a part of it is in use
    del part
    assert buffers.take(2, 3).data_ptr() == where
    assert buffers.take(4, 3).shape == (4, 3)


def test_only_pixels_that_are_there_are_taken_as_stored() -> None:
    assert stored_size(b"P6 2 3 255\n", 11 + 18) == (3, 2)
    for start, size in ((b"P6 2 3 255\n", 11 + 17), (b"P5 2 3 255\n", 11 + 18), (b"P6 0 5 255\n", 11)):
        assert stored_size(start, size) == (0, 0)


def test_settings_without_sense_are_refused() -> None:
    for settings, message in (
        ({"fraction": 0.5}, "without --decoded"),
        ({"decoded": True, "fraction": 0.0}, "above 0"),
    ):
        with pytest.raises(UsageError, match=message):
            Encoding(**settings)


@pytest.mark.slow
@pytest.mark.full
def test_two_ranks_are_stopped_and_one_goes_on_with_the_same_images(decoded: Path, tiny: Path, tmp_path: Path) -> None:
    words = [tiny, "--data", decoded, "--device", "cpu", "--workers", 1, "--track", "none", "--out"]
    told = {name: {"SENET_LEDGER": str(tmp_path / name / "ledger")} for name in ("whole", "stopped")}
    whole = run("launch.train", *words, tmp_path / "whole/out", ranks=2, **told["whole"])
    assert whole.returncode == 0, whole.stderr
    first = run("launch.train", *words, tmp_path / "stopped/out", ranks=2, **told["stopped"], SENET_FAULTS="term@1:7")
    assert first.returncode == 1, first.stderr
    assert 0 < final(tmp_path / "stopped/out")["progress"]["images"] < 120
    again = run("launch.train", *words, tmp_path / "stopped/out", **told["stopped"])
    assert again.returncode == 0, again.stderr
    assert "resumed" in again.stderr
    steps = [ledger.read(tmp_path / name / "ledger")[0] for name in told]
    assert len(steps[0]) == 10
    assert steps[0] == steps[1]
    assert [line["images"] for line in lines(tmp_path / "stopped/out", kind="val")] == [203, 203]
