"""Traffic counted from a net agrees with what was worked out by hand, op by op, for five of them."""

from __future__ import annotations

import math

import pytest

from senet import config
from senet.config import Net
from senet.models import summary
from senet.plan.traffic import trace
from tests.conftest import ROOT

# MB an image at 2 bytes (eager, compiled, tail), and images/s of a roofline at 790 TFLOP/s and 4.3 TB/s.
BY_HAND = {
    "imagenet/resnet50.yaml:v1.5": ((483, 376, 376), (8058, 10096, 10096)),
    "imagenet/se_resnet50.yaml:v1.5": ((605, 431, 387), (6564, 8937, 9840)),
    "imagenet/se_resnext50_32x4d.yaml": ((730, 523, 479), (5608, 7680, 8338)),
    "imagenet/se_resnext101_32x4d.yaml": ((1105, 789, 718), (3599, 4894, 5327)),
    "imagenet/senet154.yaml": ((1922, 1376, 1270), (1888, 2483, 2643)),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_traffic_is_that_worked_out_by_hand(name: str) -> None:
    settings = config.load(f"{ROOT}/configs/{name}")
    seen = trace(settings.net, 1000, 224)
    for stack, megabytes, pace in zip(("eager", "compiled", "tail"), *BY_HAND[name], strict=True):
        assert seen.megabytes(stack) == pytest.approx(megabytes, rel=0.035), stack  # type: ignore[arg-type]
        assert 1 / seen.seconds(stack, 790e12, 4.3e12) == pytest.approx(pace, rel=0.035), stack  # type: ignore[arg-type]
    counted = summary(settings.net, 1000, 224)
    assert (seen.parameters, seen.macs) == (counted.parameters, counted.macs)


@pytest.mark.parametrize("net", [Net(timm="seresnet50"), Net(timm="convnext_atto")])
def test_any_net_is_counted(net: Net) -> None:
    seen = trace(net, 10, 64)
    assert seen.macs == pytest.approx(summary(net, 10, 64).macs, rel=1e-3)
    assert all(math.isfinite(seen.megabytes(stack)) and seen.megabytes(stack) > 0 for stack in ("eager", "compiled", "tail", "fused"))
    assert seen.megabytes("eager") > seen.megabytes("fused")


def test_traffic_grows_with_the_image_and_se_costs_eleven_passes() -> None:
    plain, excited = (config.load(f"{ROOT}/configs/imagenet/{name}.yaml").net for name in ("resnet50", "se_resnet50"))
    small, large = (trace(plain, 1000, crop) for crop in (112, 224))
    assert large.megabytes("eager") == pytest.approx(4 * small.megabytes("eager"), rel=0.05)
    extra = trace(excited, 1000, 224).megabytes("eager") - large.megabytes("eager")
    assert extra == pytest.approx(11 * 2 * 5.52, rel=0.02)  # passes, bytes, million elements that blocks put out
