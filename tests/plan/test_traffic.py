"""The count of bytes moved against counts made by hand and an independent derivation of the same nets."""

import math
from dataclasses import replace

import pytest

from senet.config import Timm, load
from senet.execution.execution import Execution
from senet.models import summary
from senet.plan.gpus import device
from senet.plan.traffic import STACKS, stack_of, trace
from tests.helpers import ROOT

# GMAC forward, MB an image moves in bf16 by stack, images/s of one H200 by stack: worked out independently of this
# code, from shapes, for 224 px. None: not worked out.
TABLE = {
    "resnet50.yaml:v1.5": (4.09, (483, 376, None, 376, 270), (8058, 10096, None, 10096, 13403)),
    "se_resnet50.yaml:v1.5": (4.09, (605, 431, 387, None, None), (6564, 8937, 9840, 10096, 13403)),
    "se_resnext50_32x4d.yaml": (4.23, (730, 523, 479, None, None), (5608, 7680, 8338, 8520, 11726)),
    "se_resnext101_32x4d.yaml": (7.97, (1105, 789, 718, None, None), (3599, 4894, 5327, 5447, 7373)),
    "senet154.yaml": (20.7, (1922, 1376, 1270, None, None), (1888, 2483, 2643, 2687, 3525)),
}


@pytest.mark.parametrize("name", TABLE)
def test_known_nets(name: str) -> None:
    gmac, megabytes, speeds = TABLE[name]
    net = load(ROOT / f"configs/imagenet/{name}").net
    seen = trace(net, 1000, 224)
    assert seen.macs / 1e9 == pytest.approx(gmac, rel=0.002)
    for stack, known, speed in zip(STACKS, megabytes, speeds, strict=True):
        if known:
            assert seen.bytes(stack) / 1e6 == pytest.approx(known, rel=0.03), stack
        if speed:
            assert 1 / seen.seconds(stack, device("h200", "bf16")) == pytest.approx(speed, rel=0.03), stack
    counted = summary(net, 1000, 224)
    assert (seen.parameters, seen.macs) == (counted.parameters, counted.macs)


def test_a_stage_moves_what_a_count_by_hand_says() -> None:
    """ResNet-50's second stage: 56 x 56, three blocks (64, 64, 256) from 64 channels, one projection."""
    pixels = 56 * 56
    convs = 3 * pixels * (64 + 64 + 64 + 64 + 64 + 256 + 64 + 256 + 2 * (256 + 64 + 64 + 64 + 64 + 256))
    joins, inner, tails = 64 + 256 + 256, 3 * (64 + 64), 3 * 256
    whole = trace(load(ROOT / "configs/imagenet/resnet50.yaml").net, 1000, 224)
    stage = replace(
        whole,
        convs=tuple(conv for conv in whole.convs if ".stage2." in conv.name),
        passes=tuple(part for part in whole.passes if part[1] == "stage2"),
    )
    assert stage.bytes("eager") / 2 == convs + pixels * (13 * inner + 16 * tails + 8 * 256 + 3 * joins)
    assert stage.bytes("compiled") / 2 == convs + pixels * (8 * inner + 11 * tails + 8 * 256 + 3 * joins)
    assert stage.bytes("epilogue") / 2 == convs + pixels * (3 * inner + 8 * tails + 5 * 256 + joins)


def test_se_costs_what_its_tail_says() -> None:
    """The same net with and without SE differs by the SE passes over block outputs, and by its few products."""
    plain, se = (trace(load(ROOT / f"configs/cifar10/{name}.yaml").net, 10, 32) for name in ("resnet20", "se_resnet20"))
    outputs = 3 * (16 * 32 * 32 + 32 * 16 * 16 + 64 * 8 * 8)
    vectors = (
        3 * 3 * sum(2 * (channels + channels // 16) for channels in (16, 32, 64))
    )  # of the FC layers, in three directions
    for stack, passes in zip(STACKS, (11, 5, 1, 0, 0), strict=True):
        assert se.bytes(stack) - plain.bytes(stack) == 2 * (passes * outputs + vectors)
    assert 1 < se.macs / plain.macs < 1.01


# SE passes compiled and analytic: elsewhere than behind BN and before a sum, its squeeze needs a pass of its own.
@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("cifar10/se_resnet110.yaml", {"se_to_sum"}),  # pre-activation
        ("ablations/place.yaml:pre", {"se_elsewhere"}),
        ("ablations/place.yaml:post", {"se_elsewhere"}),
        ("ablations/place.yaml:identity", {"se_to_sum", "se"}),  # of projections it follows BN
        ("ablations/conv3x3.yaml:conv3x3", {"se_elsewhere"}),
    ],
)
def test_se_elsewhere_and_other_blocks(name: str, kinds: set[str]) -> None:
    config = load(ROOT / f"configs/{name}")
    seen = trace(config.net, config.data.classes, config.data.crop)
    sizes = [seen.bytes(stack) for stack in STACKS]
    assert sizes == sorted(sizes, reverse=True)  # fusing never adds bytes
    assert {kind for kind, _, _ in seen.passes if kind.startswith("se")} == kinds


def test_nets_of_timm_are_counted_like_ours() -> None:
    """timm's code of the same net, with operations in place and functions in other places, does the same work."""
    theirs = trace(Timm("seresnet50"), 1000, 224)
    ours = trace(load(ROOT / "configs/imagenet/se_resnet50.yaml:v1.5").net, 1000, 224)
    for stack in STACKS:
        assert theirs.bytes(stack) == pytest.approx(ours.bytes(stack), rel=1e-3)
    assert theirs.macs == pytest.approx(ours.macs, rel=1e-3)  # biases apart
    assert {"conv1", "layer1", "layer4"} <= {part for _, part, _ in theirs.passes}


def test_any_net_is_counted() -> None:
    net = Timm("convnext_atto")
    seen = trace(net, 10, 64)
    assert seen.macs == pytest.approx(summary(net, 10, 64).macs, rel=1e-3)
    assert all(math.isfinite(seen.bytes(stack)) for stack in STACKS)
    assert seen.bytes("eager") > seen.bytes("compiled") > seen.bytes("epilogue") > 0


def test_bytes_moved_grow_with_the_image_and_the_precision() -> None:
    net = load(ROOT / "configs/imagenet/resnet50.yaml").net
    small, large = (trace(net, 1000, crop) for crop in (112, 224))
    assert large.bytes("eager") == pytest.approx(4 * small.bytes("eager"), rel=0.05)
    assert large.kept() == pytest.approx(4 * small.kept(), rel=0.05)
    assert large.bytes("eager", 4) == 2 * large.bytes("eager")


def test_executions_are_stacks() -> None:
    assert stack_of(Execution()) == "eager"
    assert [stack_of(Execution("contiguous", tail, True)) for tail in ("plain", "analytic", "triton")] == [
        "compiled",
        "analytic",
        "triton",
    ]
    assert stack_of(Execution(tail="triton")) is None
    assert stack_of(Execution(graph=True)) is None
