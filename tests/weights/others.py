"""Networks as moskomule's and NVIDIA's repositories have them, written anew from their names and descriptions."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Gate(nn.Module):
    """moskomule's SE block: two Linear layers without bias, `fc.0` and `fc.2`."""

    def __init__(self, channels: int, ratio: int) -> None:
        super().__init__()
        width = channels // ratio
        self.fc = nn.Sequential(nn.Linear(channels, width, False), nn.ReLU(), nn.Linear(width, channels, False))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean((2, 3))).sigmoid()[:, :, None, None]


class Squeeze(nn.Module):
    """NVIDIA's: convolutions with biases, `squeeze` and `expand`, 16 channels between in every block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze, self.expand = nn.Conv2d(channels, 16, 1), nn.Conv2d(16, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.expand(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class Unit(nn.Module):
    """A bottleneck that strides in its 3x3; `kind` names the SE block and is its attribute."""

    def __init__(self, inputs: int, width: int, outputs: int, stride: int, groups: int, kind: str) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        setattr(self, kind, Gate(outputs, 16) if kind == "se" else Squeeze(outputs))
        self.gate = kind
        self.downsample = None
        if inputs != outputs:
            project = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(project, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))
        y = getattr(self, self.gate)(self.bn3(self.conv3(y)))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class Other(nn.Module):
    """moskomule's SE-ResNet (`kind` se) or NVIDIA's SE-ResNeXt (`kind` squeeze), with few units."""

    def __init__(self, kind: str, widths: tuple[int, ...], expansion: int, groups: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels, stages = 64, []
        for number, width in enumerate(widths):
            units = []
            for index in range(2):
                stride = 2 if number and not index else 1
                units.append(Unit(channels, width, width * expansion, stride, groups, kind))
                channels = width * expansion
            stages.append(nn.Sequential(*units))
        self.whole = kind == "squeeze"
        if self.whole:
            self.layers = nn.Sequential(*stages)
        else:
            self.layer1, self.layer2 = stages
        self.fc = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        x = self.layers(x) if self.whole else self.layer2(self.layer1(x))
        return self.fc(x.mean((2, 3)))
