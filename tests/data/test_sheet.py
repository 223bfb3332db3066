"""Contact sheets show the pixels of the batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from senet.config import Config, Folder, FolderAugment
from senet.data.sheet import CAPTION, draw
from senet.data.source import Source, train_loader
from senet.errors import UsageError
from tests.helpers import ROOT, run


def test_the_sheet_shows_the_first_batch(images: Path, tmp_path: Path) -> None:
    config = Config(data=Folder(classes=3, crop=128, augment=FolderAugment(cutmix=1.0, pixel_jitter=20.0)), batch=12)
    said = draw(config, Source(images, "dali"), tmp_path / "sheet.png")
    assert "first 12 images" in said
    page = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert page.shape == (2 * (128 + CAPTION) + 4, 8 * 132 - 4, 3)
    loader = train_loader(config.data, Source(images, "dali"), 12, 12, 0, 0, 1, torch.device("cpu"))
    batch = next(loader.batches(0, 0))
    loader.close()
    mean, std = torch.tensor(config.data.mean), torch.tensor(config.data.std)
    for place in (0, 11):
        y, x = place // 8 * (128 + CAPTION + 4), place % 8 * 132
        pixels = (batch.images[place].permute(1, 2, 0) * std + mean) * 255
        assert np.abs(page[y : y + 128, x : x + 128] - pixels.clamp(0, 255).numpy()).max() <= 1
        assert (page[y + 128 : y + 128 + CAPTION, x : x + 128] < 128).any()  # a caption


def test_a_sheet_is_asked_for_on_the_command_line(images: Path, tmp_path: Path, tiny: Path) -> None:
    done = run("launch.show", tiny, "--data", images, "--batch", tmp_path / "sheet.png", "--backend", "pillow")
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 500
    large = Config(data=Folder(classes=3, crop=32, augment=FolderAugment(repeats=3)), batch=1024)
    assert "first 32 images" in draw(large, Source(images), tmp_path / "large.png")  # though the set has but 62
    with pytest.raises(UsageError, match="cannot be written"):
        draw(Config(data=Folder(classes=3, crop=32), batch=12), Source(images), tmp_path / "nowhere/sheet.png")
    done = run("launch.show", ROOT / "configs/debug/tiny.yaml", "--data", images)
    assert done.returncode == 2
    assert "--data has no effect without --batch" in done.stderr
