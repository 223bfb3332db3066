"""ShuffleNet (Zhang et al. 2018), plain and SE (table 3: 140 and 142 MFLOPs, 1.8 and 2.4 million parameters)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from senet.config import nets
from senet.models.layers import ConvBN, se_slot
from senet.models.network import Staged

WIDTHS = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}  # of stage 2, by groups; later stages double it
UNITS = {"stage2": 4, "stage3": 8, "stage4": 4}


class Unit(nn.Module):
    """1x1 grouped, channel shuffle, 3x3 depthwise, 1x1 grouped, then the sum with the input and ReLU.

    One that strides concatenates its branch with the averaged input instead. [N, inputs, H, W] -> [N, outputs, ...].
    """

    def __init__(self, inputs: int, outputs: int, groups: int, stride: int, se: nets.SqueezeExcitation | None) -> None:
        super().__init__()
        self.groups, self.stride, narrow = groups, stride, outputs // 4
        branch = outputs if stride == 1 else outputs - inputs
        # The input of the net's first unit has too few channels to be grouped.
        self.conv1 = ConvBN(inputs, narrow, 1, groups=1 if inputs == 24 else groups)
        self.conv2 = ConvBN(narrow, narrow, 3, stride, groups=narrow, relu=False)
        self.conv3 = ConvBN(narrow, branch, 1, groups=groups, relu=False)
        self.se = se_slot(branch, se)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.se(self.conv3(self.conv2(F.channel_shuffle(self.conv1(x), self.groups))))
        if self.stride == 1:
            return F.relu(x + branch)
        return F.relu(torch.cat([F.avg_pool2d(x, 3, 2, 1), branch], 1))


class ShuffleNet(Staged):
    """[N, 3, H, W] -> logits [N, classes]: ShuffleNet 1x.

    The paper does not say where SE stands. Here it scales the branch before the sum, as in ResNets, in the 13 units
    that have a sum: 2.43 M parameters. `place: every` has it before the concatenations too: 2.48 M, which the paper's
    2.4 fits less.
    """

    def __init__(self, net: nets.ShuffleNet, classes: int) -> None:
        channels, outputs = 24, WIDTHS[net.groups]
        stem, stages = nn.Sequential(ConvBN(3, channels, 3, 2), nn.MaxPool2d(3, 2, 1)), {}
        strided = net.se if net.se and net.se.place == "every" else None
        for stage, count in UNITS.items():
            stages[stage] = nn.Sequential(Unit(channels, outputs, net.groups, 2, strided))
            stages[stage].extend(Unit(outputs, outputs, net.groups, 1, net.se) for _ in range(count - 1))
            channels, outputs = outputs, 2 * outputs
        super().__init__(stem, stages, nn.Linear(channels, classes))
