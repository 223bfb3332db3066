"""Exports compute what their source does, and bring what it takes to use them."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

from launch import evaluate, export
from senet import config, models
from senet.errors import UsageError
from senet.export.forms import FORMS, TOLERANCE, deviation, facts
from senet.run.load import Trained, load
from tests.helpers import lines

HAS_ONNX = all(importlib.util.find_spec(package) for package in ("onnx", "onnxscript", "onnxruntime"))


def test_weights_travel_with_config_classes_and_card(
    trained: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert export.main([str(trained), "--to", "safetensors", "--out", str(out)]) == 0
    assert "its logits are those of the source within 0.0e+00" in capsys.readouterr().out
    errors = []
    for what in (trained, out):
        assert evaluate.main([str(what), "--data", str(images), "--json"]) == 0
        errors.append(json.loads(capsys.readouterr().out))
    assert errors[1] == errors[0]
    described = json.loads((out / "preprocessing.json").read_text())
    assert described["classes"] == ["class0", "class1", "class2"]
    assert described["preprocessing"]["resize"] == 40
    card = (out / "README.md").read_text()
    best = min(record["top1_error"] for record in lines(trained, kind="val"))
    for words in ("class0, class1, class2", f"top-1 error {best:.2f} %", "--gpus 2", 'load(".")'):
        assert words in card


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_of_half_the_size_are_the_sources_rounded(trained: Path, tmp_path: Path, dtype: str) -> None:
    said = ["--out", str(tmp_path), "--dtype", dtype]
    assert export.main([str(trained), "--to", "safetensors", *said]) == 0
    stored = safetensors.torch.load_file(tmp_path / "model.safetensors")
    source, read = load(str(trained)).net.state_dict(), load(str(tmp_path)).net.state_dict()
    for name, value in source.items():
        rounded = value.to(getattr(torch, dtype)) if value.dim() > 1 else value
        assert torch.equal(stored[name], rounded)
        assert torch.equal(read[name], rounded.to(value.dtype))
    if dtype == "bfloat16":  # autocast rounds likewise
        images = torch.randn(4, 3, 64, 64)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(load(str(trained)).net.eval()(images), load(str(tmp_path)).net.eval()(images))
    assert f"rounded to {dtype}" in (tmp_path / "README.md").read_text()
    with pytest.raises(UsageError, match=f"--dtype {dtype}: goes with --to safetensors and timm"):
        export.main([str(trained), "--to", "pt2", *said])


def test_graphs_take_batches_of_any_size(trained: Path, tmp_path: Path) -> None:
    net = load(str(trained))
    described = facts(net)
    run = FORMS["pt2"].write(net, tmp_path, described, torch.float32)
    assert run is not None
    assert deviation(net, run) <= TOLERANCE[torch.float32]
    kept = {"senet.json": ""}
    torch.export.load(tmp_path / "model.pt2", extra_files=kept)
    assert json.loads(kept["senet.json"]) == described


@pytest.mark.skipif(not HAS_ONNX, reason="needs onnx, onnxscript and onnxruntime")
def test_onnx_computes_the_same_in_onnxruntime(trained: Path, tmp_path: Path) -> None:
    net = load(str(trained))
    run = FORMS["onnx"].write(net, tmp_path, facts(net), torch.float32)
    assert run is not None
    assert deviation(net, run) <= TOLERANCE[torch.float32]


@pytest.mark.skipif(HAS_ONNX, reason="onnx is installed")
def test_onnx_says_what_it_needs(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="pip install onnx onnxscript"):
        export.main([str(trained), "--to", "onnx", "--out", str(tmp_path)])


def test_timm_loads_its_folder(trained: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = config.Config(net=config.Timm("test_resnet"), data=config.Folder(classes=3, crop=64, resize=80))
    source = Trained(models.build(settings.net, 3), settings, "a test", ("a", "b", "c"))
    run = FORMS["timm"].write(source, tmp_path, facts(source), torch.float32)
    assert run is not None
    assert deviation(source, run) == 0
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    how = timm.data.resolve_model_data_config(theirs)
    assert (tuple(how["input_size"]), how["crop_pct"], how["interpolation"]) == ((3, 64, 64), 0.8, "bilinear")
    own = load(str(trained))
    strange = replace(own, config=replace(own.config, net=replace(own.config.net, blocks=(1, 2))))
    with pytest.raises(UsageError, match="timm has no network like this"):
        FORMS["timm"].write(strange, tmp_path, facts(strange), torch.float32)
