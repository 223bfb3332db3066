"""A report shows what a run's folder holds, whatever state the run is in, and the paper's numbers beside it."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from launch import evaluate, report
from senet import config
from senet.report.facts import read
from senet.report.page import Seen, html
from senet.report.paper import quoted
from senet.report.summary import difference
from senet.system.run_folder import RunFolder
from tests.helpers import ROOT, lines


def test_a_page_of_a_finished_run(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(trained), "--out", str(tmp_path)]) == 0
    assert f"{tmp_path}/index.html" in capsys.readouterr().out
    page = (tmp_path / "index.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)', page)  # it needs nothing beside it
    val = lines(trained, kind="val")
    assert f"{val[-1]['top1_error']:.2f} (" in page
    assert evaluate.main([str(trained), "--data", str(read(trained).data), "--json"]) == 0
    errors = json.loads(capsys.readouterr().out)
    assert f"top-1 error {errors['top1_error']:.2f} % (95 %: {errors['top1_interval'][0]:.2f} to" in page
    for row in errors["classes"]:
        assert (
            f"<td>{row['label']}</td><td class=number>{row['images']}</td><td class=number>{row['error']:.1f}" in page
        )
    assert page.count("<figcaption>") == min(24, round(errors["top1_error"] / 100 * errors["images"]))
    assert "--gpus 2" in page  # the command
    assert json.loads((trained / "run.json").read_text())[-1]["versions"]["torch"] in page
    for name in ("errors", "loss", "speed", "confusion-1"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.width > 500


def test_runs_side_by_side_and_broken_ones(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "seed1"
    shutil.copytree(trained, broken, ignore=shutil.ignore_patterns("checkpoints"))
    folder = RunFolder(broken)
    settings = yaml.safe_load(folder.config.read_text()) | {"seed": 1}
    folder.config.write_text(yaml.safe_dump(settings))
    with folder.log.open("a") as log:
        log.write('{"kind": "val", "epo')  # killed while it wrote
    folder.status.write_text(json.dumps(json.loads(folder.status.read_text()) | {"state": "running"}))
    assert report.main([str(trained), str(broken), "--table"]) == 0
    header, _, row = capsys.readouterr().out.splitlines()
    cells = dict(zip(header.split(" | "), row.split(" | "), strict=True))
    assert cells["n"] == "2"
    assert cells["top-1 error %"] == f"{lines(trained, kind='val')[-1]['top1_error']:.2f} ± 0.00"
    assert report.main([str(trained), str(broken), "--pack", str(tmp_path / "logs")]) == 0
    packed = capsys.readouterr().out.split()
    assert report.main([*packed, "--table"]) == 0
    assert capsys.readouterr().out.splitlines() == [header, _, row]
    assert report.main([*packed, "--out", str(tmp_path / "page")]) == 0
    assert "Not shown: a packed log" in (tmp_path / "page" / "index.html").read_text()
    capsys.readouterr()
    assert report.main([str(broken)]) == 0
    assert "the run goes on" in folder.report.joinpath("index.html").read_text()
    folder.log.unlink()
    assert report.main([str(broken), "--data", str(tmp_path / "gone")]) == 0
    page = folder.report.joinpath("index.html").read_text()
    assert "Nothing was logged yet" in page
    assert "Not shown" in page


def test_two_recipes_are_compared_by_welchs_t(trained: Path) -> None:
    """Student (1908) compared soporifics: 10 patients each, means 0.75 and 2.33, P = 0.079, 95 % from -3.37 to 0.21."""
    one = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    other = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    run = read(trained)
    wide = dataclasses.replace(run.config, epochs=run.config.epochs + 1)
    runs = [
        dataclasses.replace(run, config=settings, val=[run.val[-1] | {"top1_error": error}])
        for settings, errors in ((run.config, one), (wide, other))
        for error in errors
    ]
    said = "second less first: +1.58 points (95 %: -0.21 to +3.37)"
    assert said in difference(runs)
    assert said in html("Soporifics", runs, None, {}, [Seen("nobody looked")] * len(runs))
    assert not difference(runs[:10])
    alike = [dataclasses.replace(run, val=[run.val[-1] | {"top1_error": 1.0}]) for run in (runs[0], runs[-1])]
    assert not difference(alike * 2)


def test_tables_of_results_are_those_of_the_logs_beside_them(capsys: pytest.CaptureFixture[str]) -> None:
    for logs in ROOT.glob("configs/*/logs/*"):
        assert report.main([*map(str, sorted(logs.glob("*.jsonl"))), "--table"]) == 0
        assert capsys.readouterr().out.strip() in (ROOT / "configs/README.md").read_text()


def test_the_paper_is_quoted_for_its_nets() -> None:
    same = quoted(config.load("configs/imagenet/se_resnet50.yaml", ["seed=3"]))
    assert same is not None
    assert (same.config, same.top1_error, same.top5_error, same.differs) == (
        "imagenet/se_resnet50.yaml",
        23.29,
        6.62,
        [],
    )
    assert (same.val[0], same.val[-1], len(same.train)) == ((10, 54.3), (100, 23.4), 13)
    short = quoted(config.load("configs/imagenet/resnet152.yaml", ["epochs=30"]))
    assert short is not None
    assert short.differs == ["epochs: 100 -> 30"]
    ablation = quoted(config.load("configs/ablations/ratio.yaml:r4"))
    assert ablation is not None
    assert (ablation.config, ablation.top1_error, ablation.val) == ("ablations/ratio.yaml:r4", 22.25, [])
    cifar = quoted(config.load("configs/cifar10/se_resnet110.yaml"))
    assert cifar is not None
    assert (cifar.top1_error, cifar.top5_error) == (5.21, None)
    assert quoted(config.load("configs/debug/demo.yaml")) is None
