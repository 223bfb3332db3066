"""Layers that the families share, and their initialisation."""

import math

from torch import nn

from senet import config
from senet.models.se import SEBlock


class ConvBN(nn.Sequential):
    """A convolution without bias, BN and, unless `relu` is false, ReLU: [N, inputs, H, W] -> [N, outputs, H', W'].

    The convolution is padded to keep the size of the map at stride 1, unless `padding` says otherwise.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int | tuple[int, int],
        stride: int = 1,
        padding: int | None = None,
        groups: int = 1,
        relu: bool = True,
        bias: bool = False,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        height, width = (size, size) if isinstance(size, int) else size
        same = (height // 2, width // 2) if padding is None else padding
        self.conv = nn.Conv2d(inputs, outputs, (height, width), stride, same, groups=groups, bias=bias)
        self.bn = nn.BatchNorm2d(outputs, eps)
        if relu:
            self.relu = nn.ReLU()


def se_slot(channels: int, se: config.SqueezeExcitation | None, here: bool = True) -> nn.Module:
    """Return an SE block for `channels`; the identity in a net without SE, or where it does not stand."""
    return SEBlock(channels, se) if se and here else nn.Identity()


def initialise(net: nn.Module, by_group: bool) -> None:
    """Initialise convolutions as He et al. do (section 5.1: ref. 66), in place. BN and the classifier keep PyTorch's.

    The fan is that of one group, so that a depthwise convolution keeps the variance of its input; of all groups, as in
    PyTorch, if not `by_group`.
    """
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.out_channels // (layer.groups if by_group else 1) * math.prod(layer.kernel_size)
            nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_out))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
