"""The networks are the paper's: logits equal to timm's, the block as defined."""

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from senet.config import SE, Bottleneck, Stem, Timm
from senet.errors import UsageError
from senet.models import SEBlock, build, summary
from senet.models.resnet import Block

ROOT = Path(__file__).parent.parent.parent
X50 = {"widths": (128, 256, 512, 1024), "expansion": 2, "groups": 32, "stride_at": "conv3x3"}
S154 = {
    "widths": (256, 512, 1024, 2048),
    "expansion": 1,
    "reduce": 0.5,
    "groups": 64,
    "stride_at": "conv3x3",
    "stem": Stem("conv3x3x3", "ceil"),
}
CEIL = Stem(maxpool="ceil")
TIMM = {
    "resnet50": Bottleneck(stride_at="conv3x3"),
    "seresnet50": Bottleneck(stride_at="conv3x3", se=SE()),
    "seresnext50_32x4d": Bottleneck(**X50, se=SE()),
    "legacy_seresnet50": Bottleneck(stem=CEIL, se=SE()),
    "legacy_seresnext50_32x4d": Bottleneck(**X50, stem=CEIL, se=SE()),
    "legacy_senet154": Bottleneck(**S154, blocks=(3, 8, 36, 3), projection="conv3x3", dropout=0.2, se=SE()),
}


def copy_from_timm(net: nn.Module, other: nn.Module) -> None:
    """Copy weights unit by unit: the layers with weights come in the same order but for the places of
    shortcut and SE.
    """
    weighted = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)

    def layers(module: nn.Module, last: tuple[str, ...]) -> list[nn.Module]:
        """Weighted layers, those whose name contains one of `last` behind the others, in its order."""
        named = [(name, m) for name, m in module.named_modules() if isinstance(m, weighted)]
        rank = {name: next((i + 1 for i, word in enumerate(last) if word in name), 0) for name, _ in named}
        return [m for name, m in sorted(named, key=lambda pair: rank[pair[0]])]

    units = [
        m
        for m in other.modules()
        if type(m).__name__ in ("Bottleneck", "SEResNetBottleneck", "SEResNeXtBottleneck", "SEBottleneck")
    ]
    ours = [m for m in net.modules() if isinstance(m, Block)]
    inside = {id(layer) for unit in units for layer in unit.modules()} | {
        id(layer) for unit in ours for layer in unit.modules()
    }

    def outer(module: nn.Module) -> list[nn.Module]:
        return [m for m in module.modules() if isinstance(m, weighted) and id(m) not in inside]

    assert len(units) == len(ours)
    pairs = list(zip(outer(net), outer(other), strict=True))
    for mine, theirs in zip(ours, units, strict=True):
        pairs += zip(layers(mine, ("se.", "shortcut")), layers(theirs, ("se.", "se_module", "downsample")), strict=True)
    for mine, theirs in pairs:
        mine.load_state_dict(theirs.state_dict())


@pytest.mark.parametrize("name", TIMM)
def test_logits_equal_timms(name: str) -> None:
    torch.manual_seed(0)
    other = timm.create_model(name, pretrained=False).eval().double()
    for module in other.modules():  # statistics as after some training, so that a BN left out shows
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.8, 1.2)
            module.weight.data.uniform_(0.8, 1.2)
    net = build(TIMM[name], 1000).eval().double()
    copy_from_timm(net, other)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.inference_mode():
        expected, got = other(x), net(x)
    assert torch.allclose(got, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


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
    net = build(Bottleneck(blocks=(1, 2), widths=(16, 32), stem="cifar", preactivation=preactivation, se=se), 10)
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
