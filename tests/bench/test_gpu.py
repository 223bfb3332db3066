"""The GPU bench, rehearsed on the CPU: parts, goals, going on where a call ended."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from launch.bench import main
from senet import config
from senet.bench import gpu, summary
from senet.plan import rates
from senet.plan.traffic import Stack
from tests.helpers import ROOT, run


def state(out: Path, part: str) -> Any:
    return json.loads((out / f"{part}.json").read_text())


@pytest.mark.slow
def test_parts_are_run_once_and_what_failed_again(tmp_path: Path) -> None:
    out = tmp_path / "gpu"
    words = ["gpu", "--out", out, "--tiny", "--device", "cpu", "--parts", "machine", "numerics", "cifar"]
    done = run("launch.bench", *words, "--minutes", 2)
    assert done.returncode == 0, done.stderr
    assert [state(out, part)["status"] for part in ("machine", "numerics", "cifar")] == ["done"] * 3
    assert state(out, "numerics")["result"]["passed"]
    assert [epoch["epoch"] for epoch in state(out, "cifar")["result"]["epochs"]] == [1]
    page = (out / "summary.md").read_text()
    assert "a rehearsal" in page
    assert "NOT reached" not in page

    # A part that is there is not run again; one that failed is, and what became of it is told.
    before = (out / "numerics.json").stat().st_mtime_ns
    (out / "cifar.json").unlink()
    (out / "cifar").rename(out / "moved")
    (out / "cifar").write_text("in the way")
    done = run("launch.bench", *words, "--minutes", 2)
    assert done.returncode == 0, done.stderr
    assert (out / "numerics.json").stat().st_mtime_ns == before
    assert state(out, "cifar")["status"] == "failed"
    assert "cifar" in (out / "summary.md").read_text().partition("## Not measured")[2]


def test_results_of_two_machines_are_not_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "of.json").write_text(json.dumps({"device": "NVIDIA H200", "tiny": False}))
    assert main(["gpu", "--out", str(tmp_path), "--tiny", "--device", "cpu"]) == 2
    assert "holds results of NVIDIA H200; use another folder" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gpu", "--out", str(tmp_path / "out")]) == 2
    assert "no CUDA device is visible" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_part_that_hangs_is_ended(tmp_path: Path) -> None:
    import argparse

    args = argparse.Namespace(out=tmp_path, device="cpu", tiny=True, data=None)
    found = gpu._run("machine", gpu.jobs()["machine"], args, 0.2)
    assert found["status"] == "failed"
    assert found["error"].startswith("ended after 0 s")
    assert found["seconds"] < 10


def row(kind: str, how: str, speed: float, **more: Any) -> dict[str, Any]:
    spread = {"median": speed, "low": speed, "high": speed, "n": 3}
    return {
        "net": "se_resnet50:v1.5",
        "config": "configs/imagenet/se_resnet50.yaml:v1.5",
        "kind": kind,
        "how": how,
        "images_per_second": spread,
        "precision": "bf16",
        "batch": 256,
        "crop": 224,
        **more,
    }


def test_goals_are_those_of_the_fastest_execution() -> None:
    ratio = {"median": 0.98, "low": 0.96, "high": 0.99, "n": 3}
    rows = [
        row("net", "channels_last", 4000.0, x_plain={**ratio, "median": 1.5}, of_analytic=0.4),
        row("net", "channels_last+triton+compile", 7000.0, x_plain=ratio, of_analytic=0.7, x_timm=ratio),
        row("plain", "channels_last+triton+compile", 7200.0),
    ]
    found = summary.goals(rows)
    assert [goal["reached"] for goal in found] == [True, False, False, None, None]
    assert all(goal["how"] == "channels_last+triton+compile" for goal in found)
    assert math.isclose(found[1]["value"], 0.7)


def test_the_planner_reads_what_was_measured(tmp_path: Path) -> None:
    """The page's rows, put into its file, are what it plans with."""
    rows = [
        row("net", "channels_last", 4000.0),
        row("net", "contiguous", 3000.0),
        row("net", "channels_last+triton", 6000.0),  # of no stack
        row("net", "channels_last+analytic+compile", 6500.0),
        row("net", "channels_last+triton+compile", 7000.0),
        row("plain", "channels_last", 5000.0),
    ]
    machine = {"gpu": "NVIDIA H200", "commit": "0123456789abcdef"}
    page = summary._measured(summary.planner(rows, machine))
    measured = tmp_path / "measured.yaml"
    measured.write_text(page.partition("```yaml\n")[2].partition("```")[0] + "others: []\n")
    settings = config.load(f"{ROOT}/configs/imagenet/se_resnet50.yaml:v1.5", ["precision=bf16"])
    assert len(rates.rows(measured)[0]) == 3
    speeds: dict[Stack, float] = {"eager": 4000.0, "analytic": 6500.0, "triton": 7000.0}
    for stack, speed in speeds.items():
        found = rates.rate(settings, "h200", stack, measured)
        assert found.basis == "measured here"
        assert found.said == f"senet.bench gpu, commit 0123456789ab: {speed:,.0f} images/s on 1 with 256 each"
        assert math.isclose(256 / (found.compute(256) + found.fixed), speed)
    assert rates.rate(settings, "h200", "compiled", measured).basis == "modelled"
    assert summary.planner(rows, machine | {"gpu": "NVIDIA TITAN V"}) == summary.planner(rows, None) == []
