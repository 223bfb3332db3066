"""CIFAR as PNGs: the same pixels and labels as the archive's."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from launch.prepare import main
from senet.data import cifar
from senet.data.cifar import CLASSES, class_names
from senet.data.storage.find import find
from senet.errors import UsageError
from senet.prepare.png import export
from tests.prepare.conftest import contents


def test_pixels_and_labels_are_those_of_the_archive(
    cifar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["cifar10", str(cifar), "--to-png", str(tmp_path), "--processes", "2"]
    assert main(words) == 0
    check(cifar, tmp_path, "cifar10", 10)
    assert [path.name for path in sorted((tmp_path / "val").iterdir())] == list(CLASSES)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    capsys.readouterr()
    assert main(words) == 0
    assert capsys.readouterr().out.count("there already") == 3
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def check(source: Path, made: Path, name: str, classes: int) -> None:
    for split, theirs in (("train", "train"), ("val", "test")):
        pixels, labels = cifar.read(source, name, theirs, checksum=False)
        index = find(made, split, classes)
        assert len(index) == len(labels)
        for image in range(len(index)):
            number = int(Path(index.storage.names[image]).stem) - 1
            with Image.open(index.storage.file(image)) as picture:
                np.testing.assert_array_equal(np.asarray(picture), pixels[number])
            assert index.labels[image] == labels[number]


def test_cifar100_python_with_names_from_its_meta(tmp_path: Path) -> None:
    folder, generator = tmp_path / "in" / "cifar-100-python", np.random.default_rng(0)
    folder.mkdir(parents=True)
    for split, count in (("train", 200), ("test", 100)):
        data = generator.integers(0, 256, (count, 3072), np.uint8)
        (folder / split).write_bytes(pickle.dumps({b"data": data, b"fine_labels": [n % 100 for n in range(count)]}))
    names = [f"thing_{number:02}" for number in range(100)]
    (folder / "meta").write_bytes(pickle.dumps({b"fine_label_names": [name.encode() for name in names]}))
    export("cifar100", tmp_path / "in", tmp_path / "out", checksum=False, processes=1)
    check(tmp_path / "in", tmp_path / "out", "cifar100", 100)
    assert find(tmp_path / "out", "train", 100).classes == tuple(names)


def test_an_interrupted_export_is_completed(cifar: Path, tmp_path: Path) -> None:
    for name in ("whole", "part"):
        export("cifar10", cifar, tmp_path / name, processes=1)
    (tmp_path / "part" / "train" / "cat").rename(tmp_path / "part" / "train" / ".cat.0123abcd.tmp")
    export("cifar10", cifar, tmp_path / "part", processes=1)
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")


def test_names_come_from_the_archive_or_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    assert class_names(tmp_path, "cifar10") == CLASSES
    names = tuple("abcdefghij")
    (folder / "batches.meta.txt").write_text("\n".join(names) + "\n\n")
    assert class_names(tmp_path, "cifar10") == names
    for wrong in ("a\nb\n", "a\n" * 10, "\n".join(("../up", *"bcdefghij"))):
        (folder / "batches.meta.txt").write_text(wrong)
        with pytest.raises(UsageError, match="not 10 names"):
            class_names(tmp_path, "cifar10")
    assert class_names(tmp_path, "cifar100") == ()
    with pytest.raises(UsageError, match="no names of classes"):
        export("cifar100", tmp_path, tmp_path / "out")
    (tmp_path / "meta").write_bytes(pickle.dumps({b"fine_label_names": print}))
    with pytest.raises(UsageError, match=r"asks for builtins\.print"):
        class_names(tmp_path, "cifar100")


def test_another_set_is_refused(cifar: Path, tmp_path: Path) -> None:
    (tmp_path / "train" / "cats").mkdir(parents=True)
    with pytest.raises(UsageError, match="not empty"):
        export("cifar10", cifar, tmp_path, processes=1)
