"""Inception-ResNet-v2 (Szegedy et al. 2017, as in TensorFlow's slim), plain and SE.

Table 2 gives it 11.75 GFLOPs, with SE 11.76, at 299x299. The published net of 10, 20 and 10 blocks has 13.16; that of
the figures in the Inception-v4 paper, with its stem and 5, 10 and 5 blocks, 9.26. The paper does not say which net it
trained: 5, 20 and 5 blocks of the published net have 11.756, with SE 11.762, and are the default here. This is a match
of numbers only.

Where SE stands is not said either ("similar schemes", section 3.3): it scales the residual branch, after the 1x1
convolution that ends it and before the fixed scale and the sum, as in ResNets.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from senet.config import nets
from senet.models.layers import ConvBN, se_slot
from senet.models.network import Staged

EPS = 1e-3  # of BN in slim's nets


def convs(inputs: int, *layers: tuple[int, int | tuple[int, int]], stride: int = 1) -> nn.Sequential:
    """Return convolutions with BN and ReLU, each given as (outputs, size); the last strides, unpadded, by `stride`."""
    net = nn.Sequential()
    for index, (outputs, size) in enumerate(layers):
        strides = stride if index == len(layers) - 1 else 1
        net.append(ConvBN(inputs, outputs, size, strides, padding=0 if strides == 2 else None, eps=EPS))
        inputs = outputs
    return net


class Branches(nn.Module):
    """Branches side by side on one input, their outputs concatenated: [N, C, H, W] -> [N, sum of channels, H', W']."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class Block(nn.Module):
    """A residual unit around branches; `up` brings their `width` channels back to those of the input."""

    def __init__(
        self, channels: int, branches: Branches, width: int, scale: float, relu: bool, se: nets.SqueezeExcitation | None
    ) -> None:
        super().__init__()
        self.branches, self.scale, self.relu = branches, scale, relu
        self.up = nn.Conv2d(width, channels, 1)
        self.se = se_slot(channels, se)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scale * self.se(self.up(self.branches(x)))
        return F.relu(x) if self.relu else x


def block_a(channels: int, se: nets.SqueezeExcitation | None) -> Block:
    """Return a block for 35x35 pixels."""
    branches = Branches(
        convs(channels, (32, 1)), convs(channels, (32, 1), (32, 3)), convs(channels, (32, 1), (48, 3), (64, 3))
    )
    return Block(channels, branches, 128, 0.17, True, se)


def block_b(channels: int, se: nets.SqueezeExcitation | None) -> Block:
    """Return a block for 17x17 pixels."""
    branches = Branches(convs(channels, (192, 1)), convs(channels, (128, 1), (160, (1, 7)), (192, (7, 1))))
    return Block(channels, branches, 384, 0.1, True, se)


def block_c(channels: int, se: nets.SqueezeExcitation | None, last: bool) -> Block:
    """Return a block for 8x8 pixels; the `last` of all has neither scale nor ReLU."""
    branches = Branches(convs(channels, (192, 1)), convs(channels, (192, 1), (224, (1, 3)), (256, (3, 1))))
    return Block(channels, branches, 448, 1.0 if last else 0.2, not last, se)


class InceptionResNetV2(Staged):
    """[N, 3, H, W] -> logits [N, classes], H and W at least 75."""

    side = 299

    def __init__(self, net: nets.InceptionResNetV2, classes: int) -> None:
        stem = nn.Sequential(
            convs(3, (32, 3), stride=2),
            ConvBN(32, 32, 3, padding=0, eps=EPS),
            ConvBN(32, 64, 3, eps=EPS),
            nn.MaxPool2d(3, 2),
            ConvBN(64, 80, 1, eps=EPS),
            ConvBN(80, 192, 3, padding=0, eps=EPS),
            nn.MaxPool2d(3, 2),
            Branches(
                convs(192, (96, 1)),
                convs(192, (48, 1), (64, 5)),
                convs(192, (64, 1), (96, 3), (96, 3)),
                nn.Sequential(nn.AvgPool2d(3, 1, 1, count_include_pad=False), *convs(192, (64, 1))),
            ),
        )
        reduction_a = Branches(
            convs(320, (384, 3), stride=2), convs(320, (256, 1), (256, 3), (384, 3), stride=2), nn.MaxPool2d(3, 2)
        )
        reduction_b = Branches(
            convs(1088, (256, 1), (384, 3), stride=2),
            convs(1088, (256, 1), (288, 3), stride=2),
            convs(1088, (256, 1), (288, 3), (320, 3), stride=2),
            nn.MaxPool2d(3, 2),
        )
        (a, b, c), se = net.blocks, net.se
        stages = {
            "stage3": nn.Sequential(*(block_a(320, se) for _ in range(a))),
            "stage4": nn.Sequential(reduction_a, *(block_b(1088, se) for _ in range(b))),
            "stage5": nn.Sequential(reduction_b, *(block_c(2080, se, i == c - 1) for i in range(c))),
        }
        last, head = convs(2080, (1536, 1)), nn.Dropout(net.dropout)
        super().__init__(stem, stages, nn.Linear(1536, classes), last, head)
