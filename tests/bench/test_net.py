"""The bench of whole nets measures what it says; how fast is no test."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from senet.bench.contestants import execution, label
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


@pytest.mark.parametrize(
    "how", [Execution(), Execution("contiguous", "analytic", True), Execution("channels_last", "triton", False, True)]
)
def test_executions_have_names(how: Execution) -> None:
    assert execution(label(how)) == how


def test_an_unknown_execution_is_named() -> None:
    with pytest.raises(UsageError, match="no execution 'fast'; join some of channels_last, contiguous, plain"):
        execution("channels_last+fast")
