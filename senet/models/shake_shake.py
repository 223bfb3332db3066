"""Shake-Shake (Gastaldi 2017): two residual branches, mixed at random while training; plain and SE (tables 4 and 5).

Of each image and unit, output = shortcut + alpha * first + (1 - alpha) * second, with alpha uniform in 0..1; the
gradient is shared between the branches by another draw beta ("shake") or by halves ("even"). An evaluated net takes
the mean of the branches. Draws come from the default generator of the device, which the loop seeds for each step, so
that a resumed run draws what it would have drawn.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from senet.config import SE
from senet.models.layers import ConvBN, initialise, se_slot

Backward = Literal["shake", "even"]
Place = Literal["mixed", "branches"]


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
    """What both kinds of units do with their two branches."""

    def __init__(self, branches: list[nn.Module], outputs: int, backward: Backward, se: SE | None, at: Place) -> None:
        super().__init__()
        if at == "branches":
            for branch in branches:
                branch.add_module("se", se_slot(outputs, se))
        self.branches = nn.ModuleList(branches)
        self.se = se_slot(outputs, se if at == "mixed" else None)
        self.even = backward == "even"

    def residual(self, x: Tensor) -> Tensor:
        first, second = (branch(x) for branch in self.branches)
        if not self.training:
            return self.se((first + second) / 2)
        alpha, beta = torch.rand(2, len(x), 1, 1, 1, device=x.device).to(first.dtype)
        return self.se(_Mix.apply(first, second, alpha, torch.full_like(beta, 0.5) if self.even else beta))


class BasicUnit(Unit):
    """ReLU, 3x3, BN, ReLU, 3x3, BN in each branch, and nothing after the sum."""

    def __init__(self, inputs: int, width: int, stride: int, backward: Backward, se: SE | None, at: Place) -> None:
        branches: list[nn.Module] = [
            nn.Sequential(ConvBN(inputs, width, 3, stride), ConvBN(width, width, 3, relu=False)) for _ in range(2)
        ]
        super().__init__(branches, width, backward, se, at)
        self.shortcut = nn.Identity() if inputs == width else Halves(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(x)
        shortcut = x if isinstance(self.shortcut, nn.Identity) else self.shortcut(active)
        return shortcut + self.residual(active)


class BottleneckUnit(Unit):
    """1x1, 3x3 of `groups`, 1x1 in each branch, as in ResNeXt, and ReLU after the sum."""

    def __init__(
        self,
        inputs: int, width: int, outputs: int, stride: int, groups: int, backward: Backward, se: SE | None, at: Place,
    ) -> None:  # fmt: skip
        branches: list[nn.Module] = [
            nn.Sequential(
                ConvBN(inputs, width, 1),
                ConvBN(width, width, 3, stride, groups=groups),
                ConvBN(width, outputs, 1, relu=False),
            )
            for _ in range(2)
        ]
        super().__init__(branches, outputs, backward, se, at)
        self.shortcut = nn.Identity() if inputs == outputs else ConvBN(inputs, outputs, 1, stride, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.residual(x))


class ShakeShake(nn.Module):
    """[N, 3, H, W] -> logits [N, classes], for images of 32x32 pixels; three stages of `blocks` units each.

    `basic` units of width 96 and 4 blocks are Shake-Shake 26 2x96d; `bottleneck` of width 64, 4 groups and 3 blocks
    Shake-Shake 29 2x4x64d. The paper does not say whether SE scales the mixture, as everywhere "prior to summation with
    the identity branch" (section 3.3, the default), or each branch before it is mixed (`at="branches"`).
    """

    def __init__(
        self,
        se: SE | None,
        classes: int,
        block: Literal["basic", "bottleneck"] = "basic",
        blocks: tuple[int, ...] = (4, 4, 4),
        width: int = 96,
        groups: int = 1,
        backward: Backward = "shake",
        at: Place = "mixed",
    ) -> None:
        super().__init__()
        basic = block == "basic"
        channels = 16 if basic else 64
        self.stem = ConvBN(3, channels, 3, relu=not basic)
        self.stages = nn.Sequential()
        for index, count in enumerate(blocks):
            units = nn.Sequential()
            for number in range(count):
                stride = 2 if index > 0 and number == 0 else 1
                inner = width * groups * 2**index
                outputs = inner if basic else 256 * 2**index
                units.append(
                    BasicUnit(channels, inner, stride, backward, se, at)
                    if basic
                    else BottleneckUnit(channels, inner, outputs, stride, groups, backward, se, at)
                )
                channels = outputs
            self.stages.add_module(f"stage{index + 2}", units)
        self.last = nn.ReLU() if basic else nn.Identity()
        self.fc = nn.Linear(channels, classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.last(self.stages(self.stem(x))).mean((2, 3)))
