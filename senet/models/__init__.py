"""Networks: `build` makes one from a config, `summary` counts it.

Another family is a file here, a line in FAMILIES, and its name in `senet.config.nets`: in that of `Fixed` if SE is all
that can be set, otherwise with a class of its settings.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from senet import config
from senet.models import timm
from senet.models.network import Staged
from senet.models.se import SEBlock

__all__ = ["SEBlock", "Summary", "build", "classifier", "parts", "shapes_only", "summary"]


FAMILIES = {
    # `net.family`, which is a module here, and what makes a network in it: (settings, classes) -> nn.Module
    "resnet": "ResNet",
    "bn_inception": "BNInception",
    "inception_resnet_v2": "InceptionResNetV2",
    "vgg16": "VGG16",
    "mobilenet": "MobileNet",
    "shufflenet": "ShuffleNet",
    "shake_shake": "ShakeShake",
    "timm": "untrained",
}


def build(net: config.Net, classes: int) -> nn.Module:
    """Build the network of a config with fresh weights: [N, 3, H, W] -> logits [N, classes].

    Raises UsageError for an unknown timm name.
    """
    module = importlib.import_module(f"senet.models.{net.family}")
    return getattr(module, FAMILIES[net.family])(net, classes)


def parts(net: nn.Module) -> dict[str | int, list[nn.Parameter]]:
    """Return the parameters of a network's stem and of its stages, by their numbers in the paper."""
    if not isinstance(net, Staged):
        return timm.parts(net)
    found: dict[str | int, list[nn.Parameter]] = {"stem": list(net.stem.parameters())}
    found |= {int(name[-1]): list(stage.parameters()) for name, stage in net.stages.named_children()}
    return {part: parameters for part, parameters in found.items() if parameters}


def classifier(net: nn.Module) -> nn.Module:
    """Return the last layer of a network, ours or timm's."""
    return net.get_classifier()  # type: ignore[operator]


@dataclass(frozen=True)
class Summary:
    """Trainable parameters of a network, and multiply-adds of its convolutions and FC layers for one image."""

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


@contextmanager
def shapes_only() -> Iterator[None]:
    """Make and run networks without memory: what is built inside has shapes alone."""
    with torch.device("meta"), torch.no_grad(), _Shapes():
        yield


def summary(net: config.Net, classes: int, crop: int) -> Summary:
    """Count a network without memory, data or GPU. `crop` is the side of its input in pixels."""
    macs = 0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs
        if isinstance(layer, nn.Conv2d):
            macs += output.numel() * layer.weight[0].numel()
        elif isinstance(layer, nn.Linear):
            macs += layer.in_features * output.numel()

    with shapes_only():
        module = build(net, classes).eval()
        for layer in module.modules():
            layer.register_forward_hook(count)
        module(torch.empty(1, 3, crop, crop))
    return Summary(sum(p.numel() for p in module.parameters() if p.requires_grad), macs)
