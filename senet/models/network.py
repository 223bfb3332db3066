"""What networks have in common: their parts, their features, and the blocks whose end can be computed otherwise.

The names of the methods for others are timm's.
"""

import copy
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from senet.models.layers import initialise

Tail = Callable[[Tensor, Tensor, nn.Module, nn.Module], Tensor]
"""The end of a residual block: (inner [N, C, H, W], shortcut [N, C, H, W], norm, se) -> [N, C, H, W]."""


class Staged(nn.Module):
    """A network: [N, 3, H, W] -> logits [N, classes].

    It consists of a `stem`, `stages` of units, perhaps a `last` part behind them and a `head` behind the pooling, and
    the classifier `fc`.
    """

    side = 224  # of the images that it is made for
    small = False  # for images of 32x32 pixels: a GPU computes a layer faster than the host starts it

    def __init__(
        self,
        stem: nn.Module,
        stages: Mapping[str, nn.Sequential],
        fc: nn.Linear,
        last: nn.Module | None = None,
        head: nn.Module | None = None,
        fan_by_group: bool = True,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.Sequential(OrderedDict(stages))
        self.last = last or nn.Identity()
        self.head = head or nn.Identity()
        self.fc = fc
        initialise(self, fan_by_group)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Compute the last map: [N, 3, H, W] -> [N, C, H', W']."""
        return self.last(self.stages(self.stem(x)))

    def forward_intermediates(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Compute the last map and that of each stage, as `feature_info` describes them."""
        x, maps = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return self.last(x), maps

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Compute logits from the last map, or what the classifier sees of it: [N, C, H', W'] -> [N, classes | C]."""
        x = self.head(self.pool(x))
        return x if pre_logits else self.fc(x)

    def pool(self, x: Tensor) -> Tensor:
        """Make a vector of the last map: [N, C, H', W'] -> [N, C]."""
        return x.mean((2, 3))

    def get_classifier(self) -> nn.Linear:
        """Return the last layer."""
        return self.fc

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Describe the map of each stage: channels `num_chs`, `reduction` of the image's side, name of the `module`."""
        net, described = copy.deepcopy(self).to("meta"), []
        _, maps = net.forward_intermediates(torch.empty(2, 3, self.side, self.side, device="meta"))
        for (name, _), x in zip(self.stages.named_children(), maps, strict=True):
            reduction = 2 ** round(math.log2(self.side / x.shape[2]))
            described.append({"num_chs": x.shape[1], "reduction": reduction, "module": f"stages.{name}"})
        return described

    def parts(self) -> list[nn.Module]:
        """Return what is compiled by itself, so that DDP can reduce the gradients of one part during the next."""
        units = [unit for stage in self.stages for unit in stage.children()]
        return [part for part in (self.stem, self.last) if any(part.children())] + units


class TailBlock(nn.Module):
    """A residual block that leaves its end to `tail`; `plain` computes it layer by layer."""

    plain: Tail
    tail: Tail
    fusable: bool  # whether the end is ReLU of the shortcut plus SE, or nothing, of BN; SE averages the map
