"""The benches of the loop and of a checkpoint measure what they say."""

import json
from pathlib import Path

import pytest

from tests.helpers import run


@pytest.mark.slow
def test_our_loop_is_measured_over_a_bare_one(tmp_path: Path) -> None:
    """Its small set has fewer steps an epoch than are made."""
    words = ["configs/debug/tiny.yaml", "--pairs", 4, "--json", tmp_path / "step.json"]
    done = run("launch.bench", "step", *words)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "step.json").read_text())
    assert [row["how"] for row in rows] == ["channels_last, wall time", "channels_last, CPU time"]
    for row in rows:
        assert row["value"]["n"] == row["facts"]["pairs"] == 4
        assert row["facts"]["bare, ms"] > 0
        assert row["value"]["median"] / 100 * row["facts"]["bare, ms"] == pytest.approx(row["facts"]["us"] / 1e3)
    assert "% over a bare loop" in done.stdout


@pytest.mark.slow
def test_a_save_is_measured_beside_a_copy(tmp_path: Path) -> None:
    words = ["--config", "configs/cifar10/se_resnet20.yaml", "--rounds", 3, "--json", "-"]
    done = run("launch.bench", "save", *words)
    assert done.returncode == 0, done.stderr
    copy, stall, written = json.loads(done.stdout)
    assert stall["facts"]["x a copy"]["n"] == copy["value"]["n"] == 3
    assert 0 < stall["value"]["median"] < written["value"]["median"]
