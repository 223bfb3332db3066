"""BN-Inception (Ioffe and Szegedy 2015), plain and SE, with the channels of the released SE model."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from senet.config import nets
from senet.models.layers import ConvBN, se_slot
from senet.models.network import Staged


class Widths(NamedTuple):
    """Channels of an Inception module; without `conv1x1` and `project` it strides and passes its pooled input on."""

    conv1x1: int
    conv3x3: tuple[int, int]  # 1x1, 3x3
    double3x3: tuple[int, int, int]  # 1x1, 3x3, 3x3
    pool: Literal["avg", "max"]
    project: int


STAGES = {
    "stage3": {
        "a": Widths(64, (64, 64), (64, 96, 96), "avg", 32),
        "b": Widths(64, (64, 96), (64, 96, 96), "avg", 64),
        "c": Widths(0, (128, 160), (64, 96, 96), "max", 0),
    },
    "stage4": {
        "a": Widths(224, (64, 96), (96, 128, 128), "avg", 128),
        "b": Widths(192, (96, 128), (96, 128, 128), "avg", 128),
        "c": Widths(160, (128, 160), (128, 160, 160), "avg", 128),
        "d": Widths(96, (128, 192), (160, 192, 192), "avg", 128),
        "e": Widths(0, (128, 192), (192, 256, 256), "max", 0),
    },
    "stage5": {
        "a": Widths(352, (192, 320), (160, 224, 224), "avg", 128),
        "b": Widths(352, (192, 320), (192, 224, 224), "max", 128),
    },
}


class Inception(nn.Module):
    """An Inception module, its whole output scaled by an SE block (figure 2): [N, C, H, W] -> [N, outputs, ...]."""

    def __init__(self, inputs: int, widths: Widths, se: nets.SqueezeExcitation | None) -> None:
        super().__init__()
        stride = 1 if widths.conv1x1 else 2
        if widths.conv1x1:
            self.conv1x1 = ConvBN(inputs, widths.conv1x1, 1)
        narrow, wide = widths.conv3x3
        self.conv3x3 = nn.Sequential(ConvBN(inputs, narrow, 1), ConvBN(narrow, wide, 3, stride))
        narrow, middle, wide = widths.double3x3
        self.double3x3 = nn.Sequential(
            ConvBN(inputs, narrow, 1), ConvBN(narrow, middle, 3), ConvBN(middle, wide, 3, stride)
        )
        if stride == 2:
            self.pool: nn.Module = nn.MaxPool2d(3, 2, ceil_mode=True)
        else:
            pool = nn.AvgPool2d(3, 1, 1) if widths.pool == "avg" else nn.MaxPool2d(3, 1, 1)
            self.pool = nn.Sequential(pool, ConvBN(inputs, widths.project, 1))
        self.outputs = widths.conv1x1 + widths.conv3x3[-1] + widths.double3x3[-1] + (widths.project or inputs)
        self.branches = list(self.children())
        self.se = se_slot(self.outputs, se)

    def forward(self, x: Tensor) -> Tensor:
        return self.se(torch.cat([branch(x) for branch in self.branches], 1))


class BNInception(Staged):
    """[N, 3, H, W] -> logits [N, classes]. SE follows all ten modules, the two that stride among them."""

    def __init__(self, net: nets.Fixed, classes: int) -> None:
        stem = nn.Sequential(
            ConvBN(3, 64, 7, 2),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            ConvBN(64, 64, 1),
            ConvBN(64, 192, 3),
            nn.MaxPool2d(3, 2, ceil_mode=True),
        )
        channels, stages = 192, {}
        for stage, modules in STAGES.items():
            stages[stage] = nn.Sequential()
            for name, widths in modules.items():
                module = Inception(channels, widths, net.se)
                stages[stage].add_module(name, module)
                channels = module.outputs
        super().__init__(stem, stages, nn.Linear(channels, classes))
