"""The GPU bench, rehearsed on the CPU: parts, limits, goals, going on where a call ended."""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from launch.bench import main
from senet import config
from senet.bench import gpu
from senet.bench.rows import Row, read
from senet.errors import UsageError
from senet.plan import rates
from senet.plan.scale import FIXED
from senet.plan.traffic import Stack
from senet.system.timing import Spread
from tests.helpers import ROOT, run

SE50 = "imagenet/se_resnet50:v1.5"


@pytest.mark.slow
def test_parts_are_run_once_and_what_failed_again(tmp_path: Path) -> None:
    out = tmp_path / "gpu"
    parts = ["machine", "net-cifar", "cifar"]
    words = ["gpu", "--out", out, "--tiny", "--device", "cpu", "--minutes", 3, "--parts", *parts]
    done = run("launch.bench", *words)
    assert done.returncode == 0, done.stderr
    states = json.loads((out / "parts.json").read_text())
    assert {name: state["status"] for name, state in states["parts"].items()} == dict.fromkeys(parts, "done"), states
    rows = read(out / "rows.jsonl")
    assert {row.part for row in rows} == set(parts)
    trained = next(row for row in rows if row.part == "cifar")
    assert (trained.how, trained.facts["epoch"]) == ("trained on noise", 1)
    assert {row.how for row in rows if row.part == "machine"} == {"copy", "fp32 product"}
    page = (out / "summary.md").read_text()
    assert "a rehearsal" in page
    assert "## Goals" not in page
    assert "## net-cifar" in page

    # A part that is there is not run again; one that failed is, and what became of it is said.
    del states["parts"]["cifar"]
    (out / "parts.json").write_text(json.dumps(states))
    (out / "cifar").rename(out / "moved")
    (out / "cifar").write_text("in the way")
    done = run("launch.bench", *words)
    assert done.returncode == 0, done.stderr
    assert "machine: there already" in done.stdout
    again = json.loads((out / "parts.json").read_text())["parts"]
    assert again["machine"] == states["parts"]["machine"]
    assert again["cifar"]["status"] == "failed"
    assert "cifar" in (out / "summary.md").read_text().partition("## Not measured")[2]


def test_a_call_of_nine_minutes_and_one_of_four_hold_all_that_matters() -> None:
    jobs = gpu.jobs()
    first = ["machine", "net-se_resnet50", "compiled-se_resnet50", "tests", "loader", "loop", "net-senet154"]
    second = ["net-se_resnext101", "net-cifar", "net-se_resnext50", "cifar"]
    assert list(jobs)[:11] == [*first, *second]
    assert sum(jobs[name].limit for name in first) <= 9 * 60 - gpu.SUMMARY
    assert sum(jobs[name].limit for name in second) <= 4 * 60 - gpu.SUMMARY
    assert [name for name, job in jobs.items() if job.extra] == list(jobs)[11:]
    assert all(job.least <= job.limit and job.limit > gpu.GRACE for job in jobs.values())


def test_results_of_two_machines_are_not_mixed(tmp_path: Path) -> None:
    (tmp_path / "parts.json").write_text(json.dumps({"device": "NVIDIA H200", "tiny": False, "parts": {}}))
    with pytest.raises(UsageError, match="holds results of NVIDIA H200; use another folder"):
        main(["gpu", "--out", str(tmp_path), "--tiny", "--device", "cpu"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    done = run("launch.bench", "gpu", "--out", tmp_path / "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no CUDA device is visible" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_part_that_hangs_is_ended(tmp_path: Path) -> None:
    args = argparse.Namespace(out=tmp_path, device="cpu", tiny=True, data=None)
    state = gpu._run("machine", args, 0.2)
    assert state["status"] == "failed"
    assert state["error"].startswith("ended after 0 s")
    assert state["seconds"] < 10


def row(how: str, speed: float, what: str = SE50, **facts: Any) -> Row:
    facts |= {"batch": 256, "precision": "bf16"}
    return Row(what, how, Spread(speed, speed, speed, 3), facts=facts, part="net-se_resnet50")


def test_goals_are_those_of_the_fastest_execution() -> None:
    ratio = Spread(0.98, 0.96, 0.99, 3)
    rows = [
        row("channels_last", 4000.0, **{"x without SE": Spread(1.5, 1.4, 1.6, 3), "of roofline": 0.4}),
        row("channels_last+triton+compile", 7000.0, **{"x without SE": ratio, "of roofline": 0.7, "x timm": ratio}),
        row("channels_last+triton+compile", 7200.0, f"{SE50} without SE"),
        row("timm compiled", 7300.0),
        Row(SE50, "contiguous", failure="out of memory"),
    ]
    found = gpu.goals(rows)
    assert [goal["reached"] for goal in found] == [True, False, False, None, None]
    assert all(goal["how"] == "channels_last+triton+compile" for goal in found)
    assert math.isclose(found[1]["value"], 0.7)
    assert found[0]["shown"] == "0.980 (0.960-0.990)"
    page = gpu.page(rows, {"tests": {"status": "failed", "error": "exit code 1"}}, found, [], tiny=False)
    assert "NOT reached" in page
    assert "tests: exit code 1." in page.partition("## Not measured")[2]


def test_the_planner_reads_what_was_measured(tmp_path: Path) -> None:
    """The page's rows, put into its file, are what it plans with."""
    rows = [
        row("channels_last", 4000.0),
        row("contiguous", 3000.0),
        row("channels_last+triton", 6000.0),  # of no stack
        row("channels_last+analytic+compile", 6500.0),
        row("channels_last+triton+compile", 7000.0),
        row("channels_last", 5000.0, f"{SE50} without SE"),
        row("timm", 3500.0),
    ]
    machine = [Row("NVIDIA H200", "copy", facts={"commit": "0123456789ab"}, part="machine")]
    page = gpu.page(rows, {}, [], gpu.planner(rows, machine), tiny=False)
    measured = tmp_path / "measured.yaml"
    measured.write_text(page.partition("```yaml\n")[2].partition("```")[0] + "others: []\n")
    settings = config.load(f"{ROOT}/configs/imagenet/se_resnet50.yaml:v1.5", ["precision=bf16"])
    assert len(rates.rows(measured)[0]) == 3
    speeds: dict[Stack, float] = {"eager": 4000.0, "analytic": 6500.0, "triton": 7000.0}
    for stack, speed in speeds.items():
        found = rates.rate(settings, "h200", stack, measured)
        assert found.basis == "measured here"
        assert found.said == f"launch.bench gpu, commit 0123456789ab: {speed:,.0f} images/s on 1 with 256 each"
        assert math.isclose(256 / (found.compute(256) + FIXED), speed)
    assert rates.rate(settings, "h200", "compiled", measured).basis == "modelled"
    unknown = [Row("NVIDIA TITAN V", facts={"commit": ""})]
    assert gpu.planner(rows, unknown) == gpu.planner(rows, []) == []
