"""Networks of the paper beyond the residual ones: sizes of tables 2 and 3, where SE stands, and that they learn."""

import json
import typing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from senet.config import Config, Net, from_dict
from senet.config.tagged import tags
from senet.models import FAMILIES, SEBlock, build
from senet.models.shake_shake import _Mix
from tests.helpers import run

SMALL: dict[str, tuple[dict[str, Any], int]] = {  # settings of small networks, and the side of their images
    "bn_inception": ({}, 32),
    "inception_resnet_v2": ({"blocks": [1, 1, 1]}, 75),
    "vgg16": ({"hidden": 16}, 32),
    "mobilenet": ({"width": 0.25}, 32),
    "shufflenet": ({}, 32),
    "shake_shake": ({"block": "basic", "blocks": [1, 1, 1], "width": 16}, 8),
    "shake_even": ({"blocks": [1, 1, 1], "width": 8, "groups": 4, "backward": "even"}, 8),
}


def small(name: str, **se: Any) -> Config:
    """Return the config of a small network, with SE blocks if settings of them are given."""
    net, side = SMALL[name]
    family = "shake_shake" if name == "shake_even" else name
    data = {"set": "synthetic", "classes": 10, "crop": side, "train_images": 32, "val_images": 8}
    return from_dict(
        {"net": {"family": family, **net, "se": se or None}, "data": data, "optim": {"lr": 0.01}, "batch": 8}
    )


def make(name: str, **se: Any) -> nn.Module:
    """Build the network of `small`."""
    return build(small(name, **se).net, 10)


def test_every_family_can_be_named_in_a_config() -> None:
    families = {word for kind in typing.get_args(Net) for word in tags(kind, "family")}
    assert set(FAMILIES) == families
    assert families - {"resnet", "timm"} == {small(name).net.family for name in SMALL}


@pytest.mark.parametrize("name", SMALL)
def test_se_forced_to_one_equals_the_plain_net(name: str) -> None:
    se, plain, side = make(name, ratio=16).eval(), make(name).eval(), SMALL[name][1]
    assert any(isinstance(module, SEBlock) for module in se.modules())
    plain.load_state_dict({name: value for name, value in se.state_dict().items() if ".se." not in name})
    for module in se.modules():
        if isinstance(module, SEBlock):
            nn.init.zeros_(module.up.weight)
            nn.init.constant_(module.up.bias, 100.0)
    x = torch.randn(2, 3, side, side)
    assert torch.equal(se(x), plain(x))


@pytest.mark.parametrize("name", SMALL)
def test_gates_start_near_a_half_and_every_weight_learns(name: str) -> None:
    side, gates = SMALL[name][1], []
    torch.manual_seed(0)
    net = make(name, ratio=4)  # at 16 a small net's gates hang on a single channel, which ReLU may silence
    for module in net.modules():
        if isinstance(module, SEBlock):
            module.register_forward_hook(lambda block, inputs, output: gates.append(block.gates(*inputs).mean().item()))
    net(torch.randn(8, 3, side, side)).square().mean().backward()
    assert all(0.3 < gate < 0.7 for gate in gates)
    assert abs(sum(gates) / len(gates) - 0.5) < 0.1
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in net.parameters())
    assert all(module.up.weight.grad.abs().sum() > 0 for module in net.modules() if isinstance(module, SEBlock))


NAMES = {
    "bn_inception": "stage3.c.conv3x3.0.conv.weight stage4.a.pool.1.bn.weight stage5.b.se.up.bias",
    "inception_resnet_v2": "stage3.0.branches.branches.2.2.conv.weight stage4.1.up.bias stage5.1.se.down.weight",
    "vgg16": "stage3.2.conv.weight stage5.2.bn.bias stage5.2.se.up.weight",
    "mobilenet": "stage4.5.depthwise.conv.weight stage4.5.pointwise.bn.weight stage1.0.se.up.weight",
    "shufflenet": "stage2.3.conv1.conv.weight stage4.1.conv3.bn.weight stage4.1.se.down.bias",
    "shake_shake": "stage2.0.branches.1.0.conv.weight stage3.0.shortcut.conv2.weight stage4.0.se.up.weight",
    "shake_even": "stage2.0.branches.1.2.bn.weight stage3.0.shortcut.conv.weight stage4.0.se.up.weight",
}


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_names_are_public(name: str) -> None:
    with torch.device("meta"):
        names = make(name, ratio=16).state_dict().keys()
    assert {f"stages.{part}" for part in NAMES[name].split()} | {"fc.weight", "fc.bias"} <= names


def test_shaken_branches_share_output_and_gradient_by_separate_draws_for_each_image() -> None:
    first, second = (torch.full((3, 2, 4, 4), value, requires_grad=True) for value in (1.0, 0.0))
    alpha, beta = torch.tensor([0.25, 0.5, 1.0]).view(3, 1, 1, 1), torch.tensor([1.0, 0.0, 0.125]).view(3, 1, 1, 1)
    mixed = _Mix.apply(first, second, alpha, beta)
    mixed.sum().backward()
    assert torch.equal(mixed, alpha.expand_as(mixed))
    assert torch.equal(first.grad, beta.expand_as(mixed))
    assert torch.equal(second.grad, 1 - first.grad)


@pytest.mark.parametrize("name", ["shake_shake", "shake_even"])
def test_shaking_follows_the_seed_alone_and_stops_in_evaluation(name: str) -> None:
    torch.manual_seed(0)
    net, x = make(name, ratio=16), torch.randn(4, 3, 8, 8)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # so that images are independent of each other

    def logits(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return net(x)

    assert torch.equal(logits(1), logits(1))
    assert not torch.equal(logits(1), logits(2))
    same = net(x[:1].expand(4, -1, -1, -1))
    assert not torch.allclose(same[0], same[1])  # each image has draws of its own
    net.eval()
    assert torch.equal(logits(1), logits(2))


def test_two_ranks_train_each_network_and_ablation_alike_and_resume_to_the_bit(tmp_path: Path) -> None:
    done = run("tests.models.ranks", tmp_path, ranks=2)
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert told[0] == told[1]
    assert set(told[0].values()) == {"the same"}
    assert len(told[0]) == len(SMALL) + 17 + 2  # rows of tables 10 to 16 with networks of their own; whole runs
