"""The bench of whole nets measures what it says; how fast is no test."""

import json
from pathlib import Path

import pytest
from PIL import Image

from senet.bench.contestants import execution, label, short, synthetic
from senet.errors import UsageError
from senet.execution.execution import Execution
from tests.helpers import run


@pytest.mark.slow
def test_a_net_is_measured_against_its_plain_counterpart_and_others(tmp_path: Path) -> None:
    words = ["--crop", 32, "--batch", 4, "--rounds", 2, "--seconds", 0.01, "--peers", "nvidia"]
    words += ["--executions", "channels_last", "contiguous+analytic"]
    files = ["--png", tmp_path / "net.png", "--json", tmp_path / "net.json"]
    done = run("launch.bench", "net", "configs/cifar10/se_resnet20.yaml", *words, *files)
    assert done.returncode == 0, done.stderr
    rows = {(row["what"], row["how"]): row for row in json.loads((tmp_path / "net.json").read_text())}
    net, plain = "cifar10/se_resnet20", "cifar10/se_resnet20 without SE"
    hows = "channels_last", "contiguous+analytic"
    assert set(rows) == {(what, how) for what in (net, plain) for how in hows} | {(net, "NVIDIA's loop")}
    for row in rows.values():
        assert row["failure"] is None
        assert row["value"]["n"] == 2
        assert row["value"]["median"] > 0
        assert row["facts"]["batch"] == 4
        assert f"{row['what']}" in done.stdout
    ours, bare = rows[net, "channels_last"], rows[plain, "channels_last"]
    ratio, pace = ours["facts"]["x without SE"], ours["value"]["median"]
    assert ratio["n"] == 2
    slack = (ours["value"]["high"] * bare["value"]["high"]) / (ours["value"]["low"] * bare["value"]["low"])
    assert ratio["median"] == pytest.approx(pace / bare["value"]["median"], rel=slack - 1 + 1e-6)
    assert "x NVIDIA's loop" in ours["facts"]
    assert ours["facts"]["roofline"] < bare["facts"]["roofline"]
    assert ours["facts"]["of roofline"] == pytest.approx(pace / ours["facts"]["roofline"], rel=0.5)
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


def test_a_config_is_loaded_with_noise_as_its_data() -> None:
    settings = synthetic("configs/imagenet/se_resnet50.yaml:v1.5", "precision=bf16", batch=12, crop=64)
    assert (settings.data.set, settings.data.classes, settings.data.crop) == ("synthetic", 1000, 64)
    assert (settings.batch, settings.precision) == (12, "bf16")
    assert synthetic("configs/cifar10/se_resnet20.yaml").data.crop == 32
    assert short("configs/imagenet/se_resnet50.yaml:v1.5") == "imagenet/se_resnet50:v1.5"
