"""How a net is computed is asked for by flags, or measured; a run keeps to it. Other settings than before only when
told.
"""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from tests.helpers import TINY, final, run


def test_a_resumed_run_computes_as_it_began(tmp_path: Path, tiny: Path, images: Path) -> None:
    out = tmp_path / "out"
    arguments = [tiny, "--data", images, "--out", out, "--backend", "pillow"]
    first = run("launch.train", *arguments, "epochs=1", "--layout", "contiguous", "--tail", "analytic")
    assert first.returncode == 0, first.stderr
    assert "fp32, contiguous analytic;" in first.stderr
    kept = {"layout": "contiguous", "tail": "analytic", "compile": False, "graph": False}
    assert json.loads((out / "execution.json").read_text())["execution"] == kept
    assert final(out)["execution"] == kept
    again = run("launch.train", *arguments, "epochs=2", "--accept-changes")
    assert again.returncode == 0, again.stderr
    assert "fp32, contiguous analytic;" in again.stderr
    assert "warning" not in again.stderr
    other = run("launch.train", *arguments, "epochs=3", "--accept-changes", "--tail", "plain")
    assert "warning: computed as contiguous, before as contiguous analytic: last bits will differ" in other.stderr


def test_changed_settings_are_accepted_when_told_and_logged(tmp_path: Path, images: Path) -> None:
    out, file = tmp_path / "out", tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(TINY | {"epochs": 1}))
    arguments = [file, "--data", images, "--out", out, "--backend", "pillow"]
    assert run("launch.train", *arguments).returncode == 0
    refused = run("launch.train", *arguments, "epochs=2", "optim.lr=0.01")
    assert refused.returncode == 2
    assert "epochs: 1 -> 2; optim.lr: 0.05 -> 0.01" in refused.stderr
    assert "--accept-changes" in refused.stderr
    told = run("launch.train", *arguments, "epochs=2", "optim.lr=0.01", "--accept-changes")
    assert told.returncode == 0, told.stderr
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["changed"] for line in lines if line["kind"] == "event"] == ["epochs: 1 -> 2; optim.lr: 0.05 -> 0.01"]
    assert [line["learning_rate"] for line in lines if line["kind"] == "train"] == [0.05, 0.05, 0.01]
    assert yaml.safe_load((out / "config.yaml").read_text())["optim"]["lr"] == 0.01
    net = run("launch.train", *arguments, "epochs=2", "optim.lr=0.01", "net.widths=[8,32]", "--accept-changes")
    assert net.returncode == 2
    assert "another net" in net.stderr


def test_tune_times_what_there_is_once_and_takes_it(tmp_path: Path, tiny: Path, images: Path) -> None:
    where = {
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "PATH": str(tmp_path),
    }  # without a compiler: there is less to time
    arguments = [
        tiny,
        "epochs=1",
        "net.blocks=[1]",
        "net.widths=[8]",
        "--data",
        images,
        "--backend",
        "pillow",
        "--tune",
    ]
    first = run("launch.train", *arguments, "--out", tmp_path / "one", **where)
    assert first.returncode == 0, first.stderr
    assert "<- chosen" in first.stderr
    second = run("launch.train", *arguments, "--out", tmp_path / "two", **where)
    assert second.returncode == 0, second.stderr
    assert "measured earlier" in second.stderr
    assert len({(tmp_path / name / "execution.json").read_text() for name in ("one", "two")}) == 1
    both = run("launch.train", *arguments, "--layout", "contiguous")
    assert both.returncode == 2
    assert "--tune chooses --layout itself" in both.stderr
