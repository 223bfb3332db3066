"""The loader benchmark measures what it says; how fast is no test."""

import json
from pathlib import Path

import pytest

from tests.helpers import run


@pytest.mark.slow
def test_every_contestant_is_measured(images: Path, tmp_path: Path) -> None:
    done = run(
        "launch.bench",
        "loader",
        "--data",
        images,
        "--threads",
        1,
        "--rounds",
        1,
        "--batch",
        8,
        "--json",
        tmp_path / "loader.json",
    )
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads((tmp_path / "loader.json").read_text())["rows"]}
    assert rows.keys() == {"torchvision", "dali-reader", "ours-dali", "ours-pillow"}
    for row in rows.values():
        assert row["per_cpu_second"] > 0, row
        assert row["of_torchvision"] > 0
        assert row["memory"] > 50


def test_what_cannot_be_measured_is_said(tmp_path: Path) -> None:
    done = run(
        "launch.bench",
        "loader",
        "--data",
        tmp_path / "nowhere",
        "--threads",
        1,
        "--rounds",
        1,
        "--contestants",
        "ours-pillow",
    )
    assert done.returncode == 0
    assert "not measured" in done.stdout
