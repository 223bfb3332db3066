"""The benches of the loop and of two ranks."""

import json
from pathlib import Path

import pytest

from tests.helpers import run


@pytest.mark.slow
def test_our_loop_is_measured_over_a_bare_one(tmp_path: Path) -> None:
    done = run("launch.bench", "step", "--pairs", 4, "--turn", 1, "--batch", 8, "--json", tmp_path / "step.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "step.json").read_text())
    for kind in ("wall", "cpu"):
        assert found[kind]["bare"]["n"] == found[kind]["ours"]["n"] == 4
        assert found[kind]["bare"]["median"] > 0
    assert "percent" in done.stdout


@pytest.mark.slow
def test_two_ranks_compute_what_one_does(tmp_path: Path) -> None:
    words = ["configs/cifar10/se_resnet20.yaml", "--batch", 4, "--crop", 32, "--steps", 2, "--timed", 1]
    done = run("launch.bench", "scaling", *words, "--json", tmp_path / "scaling.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "scaling.json").read_text())
    assert found["ranks_equal"]
    assert found["gradient_difference"] < 1e-5
    assert found["parameter_difference"] < 1e-5
    # Gradients are sent once, in one bucket for so small a net, and nothing else is.
    assert [kind for kind, _ in found["collectives"]] == ["all_reduce"] * found["buckets"]
    assert found["collective_bytes"] == found["gradient_bytes"]
    assert found["collectives_alone"] == 0
