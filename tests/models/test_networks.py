"""The block is as the paper defines it; tests/weights compares the networks with those of others."""

import pytest
import timm
import torch
from torch import nn

from senet.config import SE, Bottleneck, CifarStem, Timm
from senet.errors import UsageError
from senet.models import SEBlock, build, summary
from senet.models.resnet import Block


def test_gates_and_identity() -> None:
    block, x = SEBlock(32, SE()), torch.randn(4, 32, 5, 5)
    gates = block.gates(x)
    assert gates.shape == (4, 32, 1, 1)
    assert ((gates > 0) & (gates < 1)).all()
    assert torch.equal(block(x), x * gates)
    nn.init.zeros_(block.up.weight)
    nn.init.zeros_(block.up.bias)
    assert torch.equal(block(x), 0.5 * x)
    nn.init.constant_(block.up.bias, 100.0)
    assert torch.equal(block(x), x)


def test_no_squeeze_equals_se_on_a_constant_map() -> None:
    plain, free = SEBlock(32, SE()), SEBlock(32, SE(squeeze="none"))
    free.load_state_dict(plain.state_dict())
    x = torch.randn(4, 32, 1, 1).expand(4, 32, 5, 5)
    assert free.gates(x).shape == x.shape
    assert torch.allclose(plain(x), free(x), atol=1e-6)


def test_se_forced_to_one_equals_the_plain_net() -> None:
    se, plain = (build(Bottleneck(blocks=(1, 1, 1, 1), se=se), 10).eval() for se in (SE(), None))
    plain.load_state_dict({k: v for k, v in se.state_dict().items() if ".se." not in k})
    for module in se.modules():
        if isinstance(module, SEBlock):
            nn.init.zeros_(module.up.weight)
            nn.init.constant_(module.up.bias, 100.0)
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(se(x), plain(x))


@pytest.mark.parametrize("place", ["standard", "pre", "post", "identity", "conv3x3"])
@pytest.mark.parametrize("preactivation", [False, True])
def test_every_place_changes_the_result_and_learns(place: str, preactivation: bool) -> None:
    se = SE(place=place, ratio=2)
    net = build(Bottleneck(blocks=(1, 2), widths=(16, 32), stem=CifarStem(), preactivation=preactivation, se=se), 10)
    x = torch.randn(4, 3, 16, 16)
    net(x).sum().backward()
    blocks = [m for m in net.modules() if isinstance(m, SEBlock)]
    assert len(blocks) == 3
    assert all(block.up.weight.grad.abs().sum() > 0 for block in blocks)


def test_small_nets_keep_a_channel_in_the_middle() -> None:
    assert SEBlock(8, SE(ratio=16)).down.out_channels == 1
    assert SEBlock(40, SE(ratio=16)).down.out_channels == 2  # to the letter, not rounded to 8 as timm does


def test_state_dict_names_are_public() -> None:
    names = build(Bottleneck(blocks=(1, 1), widths=(16, 32), se=SE()), 10).state_dict().keys()
    assert {n for n in names if n.startswith("stages.stage3.0.") and "bn" not in n} == {
        *(f"stages.stage3.0.branch.conv{i}.weight" for i in (1, 2, 3)),
        *(f"stages.stage3.0.se.{fc}.{part}" for fc in ("down", "up") for part in ("weight", "bias")),
        "stages.stage3.0.shortcut.conv.weight",
    }
    assert {"stem.conv.weight", "stem.bn.weight", "fc.weight", "fc.bias"} <= names


def test_zero_init_and_timm_by_name() -> None:
    net = build(Bottleneck(blocks=(1, 1), widths=(16, 32), zero_init=True), 10)
    assert all((m.branch.bn3.weight == 0).all() for m in net.modules() if isinstance(m, Block))
    assert summary(Timm("resnet18"), 10, 64).parameters == sum(
        p.numel() for p in timm.create_model("resnet18", num_classes=10).parameters()
    )
    with pytest.raises(UsageError, match="did you mean 'seresnet50'"):
        build(Timm("seresnet5O"), 10)
