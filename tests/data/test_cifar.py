"""CIFAR's archives: both layouts, and pickles that are not to be trusted."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from senet.data.cifar import class_names, read
from senet.data.storage.find import listing
from senet.errors import UsageError
from senet.prepare.png import export


def python_layout(root: Path, batch: Any) -> Path:
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    return root


def test_binary_layout(cifar: Path) -> None:
    pixels, labels = read(cifar, "cifar10", "test")
    raw = np.frombuffer((cifar / "cifar-10-batches-bin/test_batch.bin").read_bytes(), np.uint8).reshape(20, 3073)
    assert labels.tolist() == [i % 10 for i in range(20)]
    assert pixels.shape == (20, 32, 32, 3)
    assert pixels[3, 5, 7].tolist() == [raw[3, 1 + c * 1024 + 5 * 32 + 7] for c in range(3)]
    assert len(read(cifar, "cifar10", "train")[1]) == 100


def test_python_layout_equals_binary(tmp_path: Path, cifar: Path) -> None:
    raw = np.frombuffer((cifar / "cifar-10-batches-bin/test_batch.bin").read_bytes(), np.uint8).reshape(20, 3073)
    root = python_layout(tmp_path, {b"data": raw[:, 1:], b"labels": raw[:, 0].tolist()})
    with pytest.raises(UsageError, match=r"checksum .* --no-checksum"):
        read(root, "cifar10", "test")
    for mine, theirs in zip(read(root, "cifar10", "test", checksum=False), read(cifar, "cifar10", "test"), strict=True):
        assert np.array_equal(mine, theirs)


def test_images_in_other_forms_are_the_same(tmp_path: Path, cifar: Path) -> None:
    """As Parquet of Hugging Face, and as PNG files in folders."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    export("cifar10", cifar, tmp_path / "png", checksum=False, processes=1)
    (tmp_path / "hub/plain_text").mkdir(parents=True)
    for split, part in (("train", "train"), ("test", "val")):
        index = listing(tmp_path / "png", part)
        images = [{"bytes": index.storage.read(image), "path": None} for image in range(len(index))]
        table = pyarrow.table({"img": images, "label": index.labels})
        parquet.write_table(table, tmp_path / "hub/plain_text" / f"{split}-00000-of-00001.parquet")
        pixels, labels = read(cifar, "cifar10", split)
        order = np.argsort(labels, kind="stable")
        for root in (tmp_path / "png", tmp_path / "hub"):
            own, given = read(root, "cifar10", split)
            assert np.array_equal(given, labels[order])
            assert np.array_equal(own, pixels[order])
    assert class_names(tmp_path / "png", "cifar10") == class_names(cifar, "cifar10")
    file = tmp_path / "png/val/cat" / listing(tmp_path / "png", "val").storage.names[6].rpartition("/")[2]
    Image.new("RGB", (33, 32)).save(file)
    with pytest.raises(UsageError, match=f"{file}: no image of CIFAR \\(33 x 32 pixels\\)"):
        read(tmp_path / "png", "cifar10", "test")


class Attack:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def test_a_pickle_with_code_is_refused(tmp_path: Path) -> None:
    root = python_layout(tmp_path, {b"data": Attack(tmp_path / "owned"), b"labels": []})
    with pytest.raises(UsageError, match="no array or plain container"):
        read(root, "cifar10", "train", checksum=False)
    assert not (tmp_path / "owned").exists()


def test_truncated_and_missing(tmp_path: Path, cifar: Path) -> None:
    with pytest.raises(UsageError, match=r"python -m launch\.prepare cifar10"):
        read(tmp_path, "cifar10", "train")
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    (folder / "test_batch.bin").write_bytes((cifar / "cifar-10-batches-bin/test_batch.bin").read_bytes()[:-5])
    with pytest.raises(UsageError, match="truncated"):
        read(tmp_path, "cifar10", "test")
