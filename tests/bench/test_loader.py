"""The loader benchmark measures what it says; how fast is no test."""

import json
from pathlib import Path

import pytest

from tests.helpers import run


@pytest.mark.slow
def test_contestants_are_measured(images: Path, tmp_path: Path) -> None:
    names = ["torchvision", "ours-dali", "ours-decoded-bytes", "bare-resize"]
    words = ["--data", images, "--threads", 1, "--rounds", 1, "--batch", 8, "--json", tmp_path / "loader.json"]
    words += ["--contestants", *names]
    done = run("launch.bench", "loader", *words)
    assert done.returncode == 0, done.stderr
    rows = {row["what"]: row for row in json.loads((tmp_path / "loader.json").read_text())}
    assert list(rows) == names
    for row in rows.values():
        assert row["unit"] == "images/CPU-s"
        assert row["value"]["median"] > 0, row
        assert row["what"] == "torchvision" or row["facts"]["x torchvision"]["median"] > 0
        assert row["facts"]["MiB"]["median"] > 50


def test_what_cannot_be_measured_is_said(tmp_path: Path) -> None:
    words = ["--data", tmp_path / "nowhere", "--threads", 1, "--rounds", 1, "--contestants", "ours-pillow"]
    done = run("launch.bench", "loader", *words)
    assert done.returncode == 0
    assert "ours-pillow 1 thread: not measured" in done.stdout
