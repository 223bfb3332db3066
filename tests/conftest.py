"""Data sets that the tests make, and the way to run the programs as a person does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).parent.parent
TINY = {
    "net": {"block": "basic", "blocks": [1, 1], "widths": [8, 16], "expansion": 1, "dropout": 0.1, "se": {"ratio": 4}},
    "data": {"classes": 3, "crop": 32, "resize": 40},
    "optim": {"lr": 0.05},
    "batch": 12,
    "epochs": 2,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes come first, so that processes which share the files end at about the same time."""
    long = ("slurm", "drills", "run", "train", "track", "bench")
    items.sort(key=lambda item: long.index(part) if (part := item.path.parent.name) in long else len(long))


def draw(path: Path, generator: np.random.Generator, tint: int) -> None:
    height, width = (int(n) for n in generator.integers(50, 120, 2))
    blocks = generator.integers(0, 200, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    blocks[..., tint] += 50
    Image.fromarray(blocks).resize((width, height), Image.Resampling.BICUBIC).save(path, quality=92)


def make_set(root: Path, train: int, val: int) -> Path:
    """Three classes in ImageNet layout, `train` and `val` images in all."""
    generator = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for number in range(count):
            folder = root / split / f"class{number % 3}"
            folder.mkdir(parents=True, exist_ok=True)
            draw(folder / f"{number:03}.JPEG", generator, number % 3)
    return root


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """62 training and 203 validation JPEGs: neither divides by anything convenient."""
    return make_set(tmp_path_factory.mktemp("images"), 62, 203)


@pytest.fixture(scope="session")
def shards(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`images` as WebDataset shards."""
    into = tmp_path_factory.mktemp("shards")
    done = run("launch.prepare", "shards", images, into)
    assert done.returncode == 0, done.stderr
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


def command(module: str, *words: object, ranks: int = 1) -> list[str]:
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    return [sys.executable, *start, "-m", module, *map(str, words)]


def environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    return kept | {"OMP_NUM_THREADS": "1", "NETRC": "/nonexistent", "PYTHONUNBUFFERED": "1"} | more


def run(module: str, *words: object, ranks: int = 1, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(module, *words, ranks=ranks),
        cwd=ROOT,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
