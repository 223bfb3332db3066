"""CIFAR's archives: both layouts, and pickles that are not to be trusted."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from senet.data.cifar import read
from senet.errors import UsageError


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
