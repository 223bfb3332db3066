"""The traffic model against counts made by hand and an independent derivation of the same nets."""

import pytest

from senet.config import load
from senet.models.traffic import DEVICES, VARIANTS, traffic
from tests.conftest import ROOT

# GMAC forward, GFLOP of a training step, MB an image moves in bf16 by variant, images/s of one H200 by variant: worked out
# independently of this code, from shapes, for 224 px. None: not worked out.
TABLE = {
    "resnet50.yaml:v1.5": (4.09, 24.3, (483, 376, None, 376, 270), (8058, 10096, None, 10096, 13403)),
    "se_resnet50.yaml:v1.5": (4.09, 24.3, (605, 431, 387, None, None), (6564, 8937, 9840, 10096, 13403)),
    "se_resnext50_32x4d.yaml": (4.23, 25.2, (730, 523, 479, None, None), (5608, 7680, 8338, 8520, 11726)),
    "se_resnext101_32x4d.yaml": (7.97, 47.6, (1105, 789, 718, None, None), (3599, 4894, 5327, 5447, 7373)),
    "senet154.yaml": (20.7, 124.1, (1922, 1376, 1270, None, None), (1888, 2483, 2643, 2687, 3525)),
}


@pytest.mark.parametrize("name", TABLE)
def test_known_nets(name: str) -> None:
    gmac, gflop, megabytes, speeds = TABLE[name]
    count = traffic(load(ROOT / f"configs/imagenet/{name}").net, 1000, 224)
    assert count.macs / 1e9 == pytest.approx(gmac, rel=0.002)
    assert count.flop / 1e9 == pytest.approx(gflop, rel=0.002)
    for variant, known, speed in zip(VARIANTS, megabytes, speeds, strict=True):
        if known:
            assert count.bytes(variant) / 1e6 == pytest.approx(known, rel=0.03), variant
        if speed:
            assert count.images_per_second(variant, DEVICES["h200"]) == pytest.approx(speed, rel=0.03), variant


def test_parts_make_up_the_whole() -> None:
    count = traffic(load(ROOT / "configs/imagenet/se_resnet50.yaml").net, 1000, 224)
    for variant in VARIANTS:
        parts = count.parts(variant)
        assert set(parts) == {"stem", "stage2", "stage3", "stage4", "stage5", "fc"}
        assert sum(macs for _, macs in parts.values()) == count.macs
        assert 2 * sum(elements for elements, _ in parts.values()) == count.bytes(variant)
    # ResNet-50's second stage by hand: 56 x 56, three blocks (64, 64, 256) from 64 channels, one projection.
    pixels = 56 * 56
    convs = 3 * pixels * (64 + 64 + 64 + 64 + 64 + 256 + 64 + 256 + 2 * (256 + 64 + 64 + 64 + 64 + 256))
    between = pixels * (3 * (13 * (64 + 64) + 16 * 256) + 8 * 256 + 3 * (64 + 256 + 256))
    plain = traffic(load(ROOT / "configs/imagenet/resnet50.yaml").net, 1000, 224)
    assert plain.parts("eager")["stage2"][0] == convs + between


def test_se_costs_what_its_tail_says() -> None:
    """The same net with and without SE differs by the SE passes over block outputs, and by its few products."""
    plain, se = (traffic(load(ROOT / f"configs/cifar10/{name}.yaml").net, 10, 32) for name in ("resnet20", "se_resnet20"))
    outputs = 3 * (16 * 32 * 32 + 32 * 16 * 16 + 64 * 8 * 8)
    vectors = 3 * 3 * sum(2 * (channels + channels // 16) for channels in (16, 32, 64))  # of the FC layers, in three directions
    for variant, passes in (("eager", 11), ("compiled", 5), ("analytic", 1)):
        assert se.bytes(variant) - plain.bytes(variant) == 2 * (passes * outputs + vectors)
    assert 1 < se.macs / plain.macs < 1.01


@pytest.mark.parametrize("name", ["cifar10/se_resnet110.yaml", "ablations/place.yaml:pre", "ablations/conv3x3.yaml:conv3x3"])
def test_other_blocks_are_counted(name: str) -> None:
    """Fusing never adds traffic, whatever the block."""
    config = load(ROOT / f"configs/{name}")
    count = traffic(config.net, config.data.classes, config.data.crop)
    sizes = [count.bytes(variant) for variant in VARIANTS]
    assert sizes == sorted(sizes, reverse=True)
    assert any(kind.startswith("se") for kind, _, _ in count.passes)
