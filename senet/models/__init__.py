"""Networks: `build` makes one from a config, `summary` counts it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from senet import config
from senet.models.resnet import ResNet
from senet.models.se import SEBlock
from senet.models.timm import untrained

__all__ = ["SEBlock", "Summary", "build", "summary"]


def build(net: config.Net, classes: int) -> nn.Module:
    """The network of a config, with fresh weights: [N, 3, H, W] -> logits [N, classes]. Raises UsageError for an
    unknown timm name.
    """
    return untrained(net.timm, classes) if isinstance(net, config.Timm) else ResNet(net, classes)


@dataclass(frozen=True)
class Summary:
    """Trainable parameters (BN statistics not counted) and multiply-adds of convolutions and FC layers for
    one image.
    """

    parameters: int
    macs: int

    @property
    def gmacs(self) -> float:
        return self.macs / 1e9


def summary(net: config.Net, classes: int, crop: int) -> Summary:
    """Count a network without memory, data or GPU. `crop` is the side of its input in pixels."""
    with torch.device("meta"):
        module = build(net, classes).eval()
        macs = 0

        def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            nonlocal macs
            if isinstance(layer, nn.Conv2d):
                macs += output.numel() * layer.weight[0].numel()
            elif isinstance(layer, nn.Linear):
                macs += layer.in_features * output.numel()

        for layer in module.modules():
            layer.register_forward_hook(count)
        module(torch.empty(1, 3, crop, crop))
    return Summary(sum(p.numel() for p in module.parameters() if p.requires_grad), macs)
