"""Weights of other libraries: read safely, recognised, and computing the same logits, both ways."""

from __future__ import annotations

import argparse
import collections
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import nn

from launch import weights as program
from senet import weights
from senet.config import SE, Basic, Bottleneck, CifarStem, from_dict
from senet.errors import UsageError
from senet.models import build, shapes_only
from senet.run.load import load
from senet.weights import convert, files
from tests.weights.others import Other

CLASSES = 10
TIMM = ["resnet18", "seresnet18", "legacy_seresnet18", "legacy_seresnext26_32x4d", "seresnet50"]
LARGE = [
    "resnet50", "resnet152", "wide_resnet50_2", "resnext50_32x4d", "resnext101_64x4d", "senet154", "seresnet34",
    "seresnet101", "seresnext50_32x4d", "seresnext101_32x8d", "legacy_seresnet34", "legacy_seresnet50",
    "legacy_seresnet152", "legacy_seresnext101_32x4d", "legacy_senet154",
]  # fmt: skip


def stirred(make: Callable[[], nn.Module]) -> nn.Module:
    """Make a net with random weights, and statistics as some training leaves them, so that a layer left out shows."""
    torch.manual_seed(0)
    with shapes_only():  # most of a minute goes by if each library initialises its own
        net = make()
    net.to_empty(device="cpu")
    for module in net.modules():
        for name, value in module.named_parameters(recurse=False):
            norm = isinstance(module, nn.BatchNorm2d)
            bound = 0.2 if norm or name == "bias" else math.sqrt(6 / value[0].numel())
            nn.init.uniform_(value, -bound, bound)
            value.data += norm and name == "weight"
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.8, 1.2)
            module.num_batches_tracked.fill_(3)
    return net.eval()


def ours(found: weights.Weights) -> nn.Module:
    with shapes_only():
        net = build(found.net, found.labels)
    net.load_state_dict(found.state, assign=True)
    return net.eval()


@pytest.mark.parametrize("name", [*TIMM, *(pytest.param(name, marks=pytest.mark.full) for name in LARGE)])
def test_nets_of_timm_come_and_go(name: str) -> None:
    other = stirred(lambda: timm.create_model(name, num_classes=CLASSES))
    found = weights.recognise(other.state_dict(), name)
    net = ours(found)
    assert convert.deviation(other, net, 64) < 1e-5
    back = convert.counterpart(found.net, net.state_dict(), "timm")
    assert back.name == name
    assert all(torch.equal(back.state[key], value) for key, value in other.state_dict().items())
    assert convert.deviation(net, back.net, 64) < 1e-5


@pytest.mark.parametrize("name", ["resnet18", pytest.param("resnext50_32x4d", marks=pytest.mark.full)])
def test_nets_of_torchvision_come_and_go(name: str) -> None:
    other = stirred(lambda: torchvision.models.get_model(name, weights=None, num_classes=CLASSES))
    found = weights.recognise(other.state_dict(), name)
    net = ours(found)
    assert convert.deviation(other, net, 64) < 1e-5
    back = convert.counterpart(found.net, net.state_dict(), "torchvision")
    assert (back.name, type(back.net)) == (name, type(other))
    assert convert.deviation(net, back.net, 64) < 1e-5


@pytest.mark.parametrize(
    ("kind", "shape", "title"),
    [("se", ((64, 128), 4, 1), "moskomule"), ("squeeze", ((128, 256), 2, 32), "NVIDIA")],
)
def test_nets_of_moskomule_and_nvidia_come(kind: str, shape: Any, title: str) -> None:
    other = stirred(lambda: Other(kind, *shape))
    found = weights.recognise(other.state_dict(), "theirs")
    assert found.library is not None
    assert found.library.title == title
    assert isinstance(found.net, Bottleneck)
    assert found.net.se == (SE(bias=False) if kind == "se" else SE(width=16))
    assert convert.deviation(other, ours(found), 64) < 1e-5


def test_no_bias_becomes_one_of_zero() -> None:
    net = stirred(lambda: build(Basic(blocks=(2, 2, 2, 2), expansion=1, se=SE(multiple=8, bias=False)), CLASSES))
    found = weights.recognise(net.state_dict(), "ours")
    assert found.library is None
    back = convert.counterpart(found.net, found.state, "timm")
    assert back.name == "seresnet18"
    assert convert.deviation(net, back.net, 64) < 1e-5


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (Bottleneck(se=SE()), "its seresnet50 differs in net.stride_at: conv1x1 -> conv3x3"),
        (Bottleneck(stride_at="conv3x3", se=SE(gate="tanh")), "net.se.gate: tanh -> sigmoid"),
        (Bottleneck(stride_at="conv3x3", se=SE(width=16)), "net.se.width"),
        (Basic(blocks=(3, 3, 3), widths=(16, 32, 64), expansion=1, stem=CifarStem()), "no network like this resnet"),
    ],
)
def test_what_another_library_has_not_is_refused_with_the_difference(net: Any, reason: str) -> None:
    with shapes_only():
        state = build(net, CLASSES).state_dict()
    with pytest.raises(convert.NoCounterpart, match=reason):
        convert.counterpart(net, state, "timm")


@pytest.mark.parametrize(
    "net",
    [
        {"block": "basic", "stem": "cifar", "expansion": 1, "preactivation": True},
        {"stem": {"kind": "cifar", "width": 8}, "se": {"place": "pre", "ratio": 4}},
        {"se": {"place": "conv3x3", "stages": [3], "ratio": 8, "bias": False}},
        {"stem": "conv3x3x3", "projection": "conv3x3", "groups": 16, "reduce": 0.5},
    ],
)
def test_networks_are_read_off_shapes(net: Any) -> None:
    settings = from_dict({"net": {"blocks": [1, 2], "widths": [64, 128], **net}}).net
    with shapes_only():
        state = build(settings, CLASSES).state_dict()
    assert weights.recognise(state, "ours").net == settings


# ---------------------------------------------------------------------------------------------------------------- files


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return timm.create_model("resnet18", num_classes=CLASSES).state_dict()


def test_wrapped_weights_are_found(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    wrapped = {f"module._orig_mod.{name}": value for name, value in state.items()}
    average = {name: value * 2 for name, value in wrapped.items()} | {"n_averaged": torch.tensor(3)}
    best = np.float64(71.5)
    torch.save(
        {"epoch": 3, "state_dict": wrapped, "model_ema": average, "args": argparse.Namespace(lr=1), "best": best},
        tmp_path / "timm.pth.tar",
    )
    plain, averaged = files.read(tmp_path / "timm.pth.tar"), files.read(tmp_path / "timm.pth.tar", averaged=True)
    assert (plain.averaged, averaged.averaged) == (False, True)
    assert all(torch.equal(plain.state[name], value) for name, value in state.items())
    assert torch.equal(averaged.state["fc.weight"], 2 * state["fc.weight"])
    torch.save({"model_ema": average}, tmp_path / "average.pt")
    with pytest.raises(UsageError, match=r"average\.pt: holds nothing but an average of weights; leave --raw out"):
        load(str(tmp_path / "average.pt"), ema=False)
    torch.save({"model": {"state_dict": collections.OrderedDict(state)}}, tmp_path / "deep.pt")
    safetensors.torch.save_file({f"model.{name}": value for name, value in state.items()}, tmp_path / "hub.safetensors")
    for file in ("deep.pt", "hub.safetensors"):
        assert files.read(tmp_path / file).state.keys() == state.keys()
    torch.save(
        {name: value.half() for name, value in state.items()},
        tmp_path / "legacy.pkl",
        _use_new_zipfile_serialization=False,
    )
    assert weights.read(tmp_path / "legacy.pkl").state["fc.weight"].dtype == torch.float16


@pytest.mark.parametrize("what", ["timm:test_resnet", "plain.pt"])
def test_an_average_that_is_not_there_is_refused(what: str, tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save(state, tmp_path / "plain.pt")
    with pytest.raises(UsageError, match=f"{what}: holds no average of weights; leave --ema out"):
        load(what if what.startswith("timm:") else str(tmp_path / what), ema=True)


def test_bad_files_are_refused_in_one_line(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    def refusal(name: str, content: Any) -> str:
        file = tmp_path / name
        file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
        with pytest.raises(UsageError) as error:
            load(str(file))
        assert str(error.value).startswith(str(file))
        assert "\n" not in str(error.value)
        return str(error.value)

    torch.save(state, tmp_path / "whole.pt")
    whole, tensors = (tmp_path / "whole.pt").read_bytes(), safetensors.torch.save(state)
    assert "truncated" in refusal("half.pt", whole[: len(whole) // 2])
    assert "damaged" in refusal("half.safetensors", tensors[: len(tensors) // 2])
    assert "not a file of weights" in refusal("text.pt", b"no weights in here, but some text")
    assert "not a file of weights" in refusal("empty.pt", b"")
    assert "no weights in it" in refusal("facts.pt", {"epoch": 1})
    assert "holds more than weights (torch.nn.modules.linear.Linear)" in refusal("net.pt", nn.Linear(2, 2))
    assert "it has no checksum" in refusal("ours.pt", {"format": 2, "progress": {}, "net": state})
    other = timm.create_model("resnet18d", num_classes=CLASSES).state_dict()
    told = refusal("another.pt", other)
    assert "missing: " in told
    assert "unexpected: layer2.0.downsample.2.weight" in told
    assert "resnet18d" not in told
    assert "of another shape: fc.weight" not in told
    told = refusal("vit.pt", {"cls_token": torch.zeros(1), "blocks.0.attn.qkv.weight": torch.zeros(3, 3)})
    assert "not weights of a residual network" in told
    assert "cls_token" in told


def test_the_program_converts_and_keeps_what_is_known(
    tmp_path: Path, state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": state}, "theirs.pth.tar")
    assert program.main(["convert", "theirs.pth.tar", "--to", "native"]) == 0
    assert "logits: at most 0.0e+00 of the largest one from those of timm's resnet18" in capsys.readouterr().out
    trained = load("theirs.native.safetensors")
    assert trained.config.data.classes == CLASSES
    files.write(
        Path("named.pt"),
        trained.net.state_dict(),
        {"config": {"data": {"classes": 10, "crop": 96}}, "classes": ["cat"]},
    )
    with pytest.raises(UsageError, match=r"named\.pt: weights of another net"):  # the config says ResNet-50
        load("named.pt")
    assert program.main(["convert", "theirs.native.safetensors", "--to", "torchvision", "--out", "back.pth"]) == 0
    back = torch.load("back.pth", weights_only=True)
    assert all(torch.equal(back[name], value) for name, value in state.items())
