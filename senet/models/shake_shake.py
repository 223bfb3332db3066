"""Shake-Shake (Gastaldi 2017): two residual branches, mixed at random while training; plain and SE (tables 4 and 5).

Of each image and unit, output = shortcut + alpha * first + (1 - alpha) * second, with alpha uniform in 0..1; the
gradient is shared between the branches by another draw beta ("shake") or by halves ("even"). An evaluated net takes
the mean of the branches. Draws come from the default generator of the device, which the loop seeds for each step, so
that a resumed run draws what it would have drawn.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from senet.config import nets
from senet.models.layers import ConvBN, se_slot
from senet.models.network import Staged


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        ctx.save_for_backward(beta)
        return torch.lerp(second, first, alpha)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (beta,) = ctx.saved_tensors
        share = grad * beta
        return share, grad - share, None, None


class Halves(nn.Module):
    """The shortcut of a basic unit that widens: [N, C, H, W] -> [N, outputs, H / stride, W / stride].

    A half of the channels comes from every second pixel, the other from their neighbours down and to the right.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(inputs, outputs // 2, 1, bias=False)
        self.conv2 = nn.Conv2d(inputs, outputs // 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        shifted = F.pad(x, (1, -1, 1, -1))
        step = self.stride
        parts = [self.conv1(x[:, :, ::step, ::step]), self.conv2(shifted[:, :, ::step, ::step])]
        return self.bn(torch.cat(parts, 1))


class Unit(nn.Module):
    """What both kinds of units do with their two branches: [N, inputs, H, W] -> [N, outputs, H', W']."""

    def __init__(self, net: nets.ShakeShake, branches: list[nn.Sequential], outputs: int) -> None:
        super().__init__()
        mixture = net.se is None or net.se.place == "mixture"
        if not mixture:
            for branch in branches:
                branch.add_module("se", se_slot(outputs, net.se))
        self.branches = nn.ModuleList(branches)
        self.se = se_slot(outputs, net.se, mixture)
        self.even, self.outputs = net.backward == "even", outputs

    def residual(self, x: Tensor) -> Tensor:
        first, second = (branch(x) for branch in self.branches)
        if not self.training:
            return self.se((first + second) / 2)
        alpha, beta = torch.rand(2, len(x), 1, 1, 1, device=x.device).to(first.dtype)
        return self.se(_Mix.apply(first, second, alpha, torch.full_like(beta, 0.5) if self.even else beta))


class BasicUnit(Unit):
    """ReLU, 3x3, BN, ReLU, 3x3, BN in each branch, and nothing after the sum."""

    def __init__(self, net: nets.ShakeBasic, inputs: int, stage: int, stride: int) -> None:
        outputs = net.width * 2**stage
        layers = [(ConvBN(inputs, outputs, 3, stride), ConvBN(outputs, outputs, 3, relu=False)) for _ in range(2)]
        super().__init__(net, [nn.Sequential(*branch) for branch in layers], outputs)
        self.shortcut = nn.Identity() if inputs == outputs else Halves(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(x)
        shortcut = x if isinstance(self.shortcut, nn.Identity) else self.shortcut(active)
        return shortcut + self.residual(active)


class BottleneckUnit(Unit):
    """1x1, 3x3 of `groups`, 1x1 in each branch, as in ResNeXt, and ReLU after the sum."""

    def __init__(self, net: nets.ShakeBottleneck, inputs: int, stage: int, stride: int) -> None:
        width, outputs = net.width * net.groups * 2**stage, 256 * 2**stage
        branches = [
            nn.Sequential(
                ConvBN(inputs, width, 1),
                ConvBN(width, width, 3, stride, groups=net.groups),
                ConvBN(width, outputs, 1, relu=False),
            )
            for _ in range(2)
        ]
        super().__init__(net, branches, outputs)
        self.shortcut = nn.Identity() if inputs == outputs else ConvBN(inputs, outputs, 1, stride, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.residual(x))


class ShakeShake(Staged):
    """[N, 3, H, W] -> logits [N, classes], for images of 32x32 pixels. Stages are numbered from 2, as in ResNets.

    Basic units of width 96, four in each stage, are Shake-Shake 26 2x96d; bottlenecks of width 64, 4 groups, three in
    each stage, Shake-Shake 29 2x4x64d. The paper does not say whether SE scales the mixture, as everywhere "prior to
    summation with the identity branch" (section 3.3, the default), or each branch before they are mixed.
    """

    small = True
    side = 32

    def __init__(self, net: nets.ShakeBasic | nets.ShakeBottleneck, classes: int) -> None:
        basic = isinstance(net, nets.ShakeBasic)
        kind: Any = BasicUnit if basic else BottleneckUnit
        channels = 16 if basic else 64
        stem, stages = ConvBN(3, channels, 3, relu=not basic), {}
        for stage, count in enumerate(net.blocks):
            units = stages[f"stage{stage + 2}"] = nn.Sequential()
            for index in range(count):
                unit = kind(net, channels, stage, 2 if stage > 0 and index == 0 else 1)
                units.append(unit)
                channels = unit.outputs
        super().__init__(stem, stages, nn.Linear(channels, classes), nn.ReLU() if basic else None)
