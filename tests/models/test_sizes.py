"""Sizes of all configs: as they were, as the paper prints them, and as the README says."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from senet.config import load
from senet.models import build, sizes, summary
from tests.helpers import ROOT


@pytest.fixture(scope="module")
def rows() -> list[sizes.Row]:
    return sizes.rows(ROOT)


def test_golden_file_and_readme_are_what_the_configs_come_to(rows: list[sizes.Row]) -> None:
    stale = "stale, or a network has changed: python -m launch.show --sizes, then look at the difference"
    assert (ROOT / "tests/golden/complexity.yaml").read_text() == sizes.golden(rows), stale
    readme = (ROOT / "configs/README.md").read_text()
    assert sizes.with_table(readme, sizes.table(rows)) == readme, stale


def test_sizes_are_the_papers(rows: list[sizes.Row]) -> None:
    printed = [(row.name, row.size, row.paper) for row in rows if row.paper and row.paper.gflops]
    assert len(printed) == 30  # rows of tables 2, 3, 13, 15 and 16
    # The paper's numbers seem to hold pooling too: 0.013 of ResNet-152's.
    assert not [name for name, size, paper in printed if abs(size.gmacs - paper.gflops) > 0.035]
    for name, size, paper in ((row.name, row.size, row.paper) for row in rows if row.paper and row.paper.parameters):
        if abs(size.parameters / 1e6 - paper.parameters) > 0.1:  # the paper's column seems to count BN's statistics
            with torch.device("meta"):
                net = build(load(ROOT / name).net, 1000)
            statistics = sum(2 * layer.num_features for layer in net.modules() if isinstance(layer, nn.BatchNorm2d))
            assert abs((size.parameters + statistics) / 1e6 - paper.parameters) <= 0.1, name


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("imagenet/se_resnet50", 28_071_976),
        ("imagenet/se_bn_inception", 11_924_584),
        ("imagenet/se_vgg16", 138_588_072),
        ("imagenet/se_mobilenet", 4_711_720),
        ("imagenet/se_shufflenet", 2_434_528),
        ("imagenet/se_shufflenet:every", 2_476_144),
        ("imagenet/se_inception_resnet_v2:published", 55_843_464 + 8_495_360),
        ("cifar10/se_wrn16_8", 11_047_386),
        ("cifar100/se_wrn16_8", 11_093_556),
        ("cifar10/se_shake_shake26_2x96d", 26_289_690),
        ("cifar10/se_shake_shake26_2x96d:branches", 26_386_458),
        ("cifar100/se_shake_even29_2x4x64d", 35_045_796),
        ("cifar100/se_shake_even29_2x4x64d:branches", 35_561_892),
    ],
)
def test_sizes_without_biases_are_those_of_the_formula(name: str, parameters: int) -> None:
    """Equation 5 and public counts of the plain networks give these."""
    config = load(name, ["net.se.bias=false"])
    assert summary(config.net, config.data.classes, config.data.crop).parameters == parameters
