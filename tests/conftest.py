"""Data sets and configs that many tests use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.helpers import PRELOADED, TINY, make_set, run


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Files that take minutes come first, so that processes which share the files end at about the same time.

    The tests that need a GPU keep the order in which launch.bench gpu names them: its time may not be enough for all.
    """
    if config.getoption("markexpr") == "gpu":
        return
    long = ("slurm", "drills", "nullgpu", "run", "execution", "train", "track", "bench", "diagnose", "prepare", "data")
    items.sort(key=lambda item: long.index(part) if (part := item.path.parent.name) in long else len(long))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Leave a file's tests to one process, as they share what they make: and all of tests/nullgpu, which share more."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return folder if nodeid.startswith(folder := "tests/nullgpu/") else super()._split_scope(nodeid)

    return Scheduling(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_unconfigure() -> None:
    PRELOADED.close()


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """62 training and 203 validation JPEGs: neither divides by anything convenient."""
    return make_set(tmp_path_factory.mktemp("images"), 62, 203)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """A finished run of two ranks, for tests to read."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    done = run("launch.train", folder / "tiny.yaml", "--data", images, "--out", folder / "out", "--gpu", 2)
    assert done.returncode == 0, done.stderr
    return folder / "out"


@pytest.fixture(scope="session")
def shards(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`images` as WebDataset shards."""
    into = tmp_path_factory.mktemp("shards")
    done = run("launch.prepare", "shards", images, into)
    assert done.returncode == 0, done.stderr
    return into


@pytest.fixture(scope="session")
def decoded(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`images` as shards of pixels, the validation set's too, and of JPEGs: one in three."""
    into = tmp_path_factory.mktemp("decoded")
    words = ["--decoded", "--fraction", 0.67, "--short-side", 64, "--shrink-val", "--processes", 1]
    done = run("launch.prepare", "shards", images, into, *words)
    assert done.returncode == 0, done.stderr
    assert "GB to write" in done.stderr
    return into


@pytest.fixture
def few_images(tmp_path: Path) -> Path:
    """A small set of its own for a test that damages it."""
    return make_set(tmp_path / "few", 27, 9)


@pytest.fixture(scope="session")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CIFAR-10's binary layout with few images."""
    root = tmp_path_factory.mktemp("cifar")
    folder = root / "cifar-10-batches-bin"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]:
        records = generator.integers(0, 256, (20, 3073), np.uint8)
        records[:, 0] = np.arange(20) % 10
        (folder / name).write_bytes(records.tobytes())
    return root


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(TINY))
    return file
