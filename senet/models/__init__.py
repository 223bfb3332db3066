"""Networks: `build` makes one from a config, `summary` counts it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from senet import config
from senet.models.bn_inception import BNInception
from senet.models.inception_resnet_v2 import InceptionResNetV2
from senet.models.mobilenet import MobileNet
from senet.models.resnet import ResNet
from senet.models.se import SEBlock
from senet.models.shake_shake import ShakeShake
from senet.models.shufflenet import ShuffleNet
from senet.models.timm import untrained
from senet.models.vgg16 import VGG16

__all__ = ["SEBlock", "Summary", "build", "summary"]


FAMILIES: dict[str, Callable[[Any, int], nn.Module]] = {  # what `net.family` may be: (settings, classes) -> network
    "resnet": ResNet,
    "bn_inception": BNInception,
    "inception_resnet_v2": InceptionResNetV2,
    "vgg16": VGG16,
    "mobilenet": MobileNet,
    "shufflenet": ShuffleNet,
    "shake_shake": ShakeShake,
    "timm": lambda net, classes: untrained(net.timm, classes),
}


def build(net: config.Net, classes: int) -> nn.Module:
    """Build the network of a config with fresh weights: [N, 3, H, W] -> logits [N, classes].

    Raises UsageError for an unknown timm name.
    """
    return FAMILIES[net.family](net, classes)


@dataclass(frozen=True)
class Summary:
    """Counts of a network: trainable parameters (BN statistics are none), and multiply-adds of convolutions and FC
    layers for one image.
    """

    parameters: int
    macs: int

    @property
    def gmacs(self) -> float:
        return self.macs / 1e9


class _Shapes(TorchFunctionMode):
    """Skip what changes no shape: on the meta device this would take nine tenths of the time."""

    SKIPPED = frozenset({F.batch_norm, F.relu, torch.relu, torch.sigmoid, Tensor.normal_, Tensor.uniform_})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func in self.SKIPPED else func(*args, **(kwargs or {}))


def summary(net: config.Net, classes: int, crop: int) -> Summary:
    """Count a network without memory, data or GPU. `crop` is the side of its input in pixels."""
    macs = 0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs
        if isinstance(layer, nn.Conv2d):
            macs += output.numel() * layer.weight[0].numel()
        elif isinstance(layer, nn.Linear):
            macs += layer.in_features * output.numel()

    with torch.device("meta"), torch.no_grad(), _Shapes():
        module = build(net, classes).eval()
        for layer in module.modules():
            layer.register_forward_hook(count)
        module(torch.empty(1, 3, crop, crop))
    return Summary(sum(p.numel() for p in module.parameters() if p.requires_grad), macs)
