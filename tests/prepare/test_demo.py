"""The demo set: layout, determinism, reuse, and that colour gives nothing away."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from launch.prepare import main
from senet.errors import UsageError
from senet.prepare import demo
from senet.prepare.demo import Demo, prepare
from senet.prepare.drawing import CLASSES, jpeg
from tests.prepare.conftest import contents

SMALL = Demo(train=20, val=10, seed=3)


def test_layout_is_that_of_imagenet(tmp_path: Path) -> None:
    prepare(tmp_path / "set", SMALL)
    for split, per_class in (("train", 2), ("val", 1)):
        folders = sorted((tmp_path / "set" / split).iterdir())
        assert [folder.name for folder in folders] == sorted(CLASSES)
        for folder in folders:
            images = list(folder.iterdir())
            assert len(images) == per_class
            for path in images:
                assert path.suffix == ".JPEG"
                with Image.open(path) as image:
                    assert (image.format, image.mode) == ("JPEG", "RGB")
                    assert 120 <= min(image.size) <= max(image.size) <= 520


def test_sizes_vary() -> None:
    sizes = set()
    for number in range(20):
        with Image.open(io.BytesIO(jpeg(CLASSES[0], np.random.default_rng(number)))) as image:
            sizes.add(image.size)
    assert len(sizes) > 15


def test_seed_decides_every_byte_whatever_the_processes(tmp_path: Path) -> None:
    many = Demo(train=100, val=10)
    prepare(tmp_path / "one", many, processes=1)
    prepare(tmp_path / "two", many, processes=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    prepare(tmp_path / "other", Demo(train=10, val=10, seed=1), processes=1)
    other = {name: content for name, content in contents(tmp_path / "other").items() if name.endswith(".JPEG")}
    assert not set(other.values()) & set(contents(tmp_path / "one").values())
    assert len(set(other.values())) == len(other)  # nor does training see a validation image


def test_second_run_reuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["demo", str(tmp_path / "set"), "--train", "20", "--val", "10"]
    assert main(command) == 0
    assert "written" in capsys.readouterr().out
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert main(command) == 0
    assert "there already" in capsys.readouterr().out
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_interrupted_run_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path / "whole", SMALL)
    drawn = 0

    def interrupted(name: str, rng: np.random.Generator) -> bytes:
        nonlocal drawn
        drawn += 1
        if drawn == 8:
            raise KeyboardInterrupt
        return jpeg(name, rng)

    monkeypatch.setattr(demo, "jpeg", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "set", SMALL)
    prepare(tmp_path / "set", SMALL)
    assert drawn == 8 + 30 - 6  # the three classes that were there are kept
    assert contents(tmp_path / "set") == contents(tmp_path / "whole")


def test_other_contents_are_refused(tmp_path: Path) -> None:
    prepare(tmp_path / "set", SMALL)
    before = contents(tmp_path / "set")
    with pytest.raises(UsageError, match=r"train was begun otherwise \(seed 3 instead of 4\)"):
        prepare(tmp_path / "set", Demo(train=20, val=10, seed=4))
    assert contents(tmp_path / "set") == before
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").touch()
    with pytest.raises(UsageError, match="not empty"):
        prepare(tmp_path / "thesis", SMALL)
    with pytest.raises(UsageError, match="cannot be written"):
        prepare(tmp_path / "thesis" / "chapter1.tex", SMALL)


@pytest.mark.parametrize("wrong", [{"train": 9}, {"val": 0}, {"seed": -1}])
def test_senseless_sizes_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="--"):
        Demo(**wrong)


def test_mean_colour_tells_nothing() -> None:
    """Multinomial logistic regression on the mean RGB of each image stays far above 50 % error; guessing has 90 %."""
    means, labels = [], []
    for number in range(600):
        label = number % len(CLASSES)
        with Image.open(io.BytesIO(jpeg(CLASSES[label], np.random.default_rng([9, number])))) as image:
            means.append(np.asarray(image).mean((0, 1)) / 255)
        labels.append(label)
    features, targets = np.array(means), np.array(labels)
    features = np.column_stack([(features - features.mean(0)) / features.std(0), np.ones(len(features))])
    weights = np.zeros((features.shape[1], len(CLASSES)))
    train, val = slice(0, 400), slice(400, None)
    for _ in range(1000):
        scores = np.exp(features[train] @ weights)
        gradient = scores / scores.sum(1, keepdims=True) - np.eye(len(CLASSES))[targets[train]]
        weights -= 0.5 * features[train].T @ gradient / len(gradient)
    error = 100 * np.mean((features[val] @ weights).argmax(1) != targets[val])
    assert error > 75
