"""The bench of whole nets measures what it says; how fast is no test."""

import json
import math
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from senet.bench.contestants import execution, label
from senet.bench.measure import Effort, Late, Spread, Timing, interleave, ratios, until
from senet.bench.table import markdown, text
from senet.errors import UsageError
from senet.execution.execution import Execution
from tests.helpers import run

CPU = torch.device("cpu")


@pytest.mark.slow
def test_a_net_is_measured_against_its_plain_counterpart_and_others(tmp_path: Path) -> None:
    words = [
        "--crop",
        32,
        "--batch",
        4,
        "--rounds",
        2,
        "--seconds",
        0.01,
        "--peers",
        "nvidia",
        "--png",
        tmp_path / "net.png",
    ]
    config = "configs/cifar10/se_resnet20.yaml"
    done = run(
        "launch.bench",
        "net",
        config,
        "--executions",
        "channels_last",
        "contiguous+analytic",
        *words,
        "--json",
        tmp_path / "net.json",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "net.json").read_text())
    rows = {(row["kind"], row["how"]): row for row in found["rows"]}
    assert set(rows) == {
        (kind, how) for kind in ("net", "plain") for how in ("channels_last", "contiguous+analytic")
    } | {("nvidia", "NVIDIA's loop")}
    for row in rows.values():
        assert row["failure"] is None
        assert len(row["seconds"]) == 2
        assert row["images_per_second"]["median"] > 0
    ours, plain = rows["net", "channels_last"], rows["plain", "channels_last"]
    pairs = [other / own for own, other in zip(ours["seconds"], plain["seconds"], strict=True)]
    assert ours["x_plain"]["median"] == pytest.approx(sum(pairs) / 2)
    assert ours["limit_analytic"] < plain["limit_analytic"]
    assert ours["of_analytic"] == pytest.approx(ours["images_per_second"]["median"] / ours["limit_analytic"])
    with Image.open(tmp_path / "net.png") as chart:
        assert chart.width > 400


def test_what_fails_costs_the_others_nothing() -> None:
    def broken() -> None:
        raise RuntimeError("CUDA out of memory.\nTried to allocate")

    calls: list[str] = []
    makers = {
        "good": lambda: lambda: calls.append("good"),
        "bad": lambda: broken,
        "other": lambda: lambda: calls.append("other"),
    }
    found = interleave(makers, CPU, Effort(rounds=3, seconds=0.0, warmup=0))
    assert found["bad"].failure == "RuntimeError: CUDA out of memory."
    assert len(found["good"].seconds) == len(found["other"].seconds) == 3
    assert ratios(found["good"], found["bad"]) is None
    # Each round begins with another contestant.
    assert calls[-6:] == ["good", "other", "other", "good", "good", "other"]


def test_no_contestant_is_begun_when_time_is_over() -> None:
    def slow() -> None:
        torch.zeros(1)
        for _ in range(10**9):
            pass

    found = interleave(
        {"slow": lambda: slow, "next": lambda: lambda: None}, CPU, Effort(1, 0.0, 0, time.monotonic() + 0.3)
    )
    assert found["slow"].failure == found["next"].failure == "Late: no time was left"


def test_ratios_come_from_pairs() -> None:
    ratio = ratios(Timing([1.0, 2.0, 4.0]), Timing([2.0, 4.0, 4.0]))
    assert ratio == Spread(2.0, 1.0, 2.0, 3)
    assert ratio.text() == "2.00 (1.00-2.00)"
    assert Spread(1234.5, 999.0, 0.01234, 2).text() == "1,234 (999-0.0123)"


@pytest.mark.parametrize(
    "how", [Execution(), Execution("contiguous", "analytic", True), Execution("channels_last", "triton", False, True)]
)
def test_executions_have_names(how: Execution) -> None:
    assert execution(label(how)) == how


def test_an_unknown_execution_is_named() -> None:
    with pytest.raises(UsageError, match="no execution 'fast'; join some of channels_last, contiguous, plain"):
        execution("channels_last+fast")


def test_tables() -> None:
    header, rows = ("net", "images/s"), [("a|b", 1234.5), ("c", None), ("d", math.pi)]
    assert text(header, rows).splitlines() == ["net  images/s", "a|b     1,234", "c           -", "d        3.14"]
    assert markdown(header, rows).splitlines()[2] == "| a\\|b | 1,234 |"


def test_limits_of_time_nest() -> None:
    def work() -> None:
        with until(time.monotonic() + 60):
            pass
        time.sleep(30)

    with pytest.raises(Late), until(time.monotonic() + 0.2):
        work()
    with pytest.raises(Late), until(time.monotonic() - 1):
        work()
    time.sleep(0.3)  # no alarm is left behind
