"""What others may know of a network: its parts, its features, and the blocks whose end can be computed otherwise.

A family whose networks are to be compiled part by part, or fused, says so here; others are plain modules. The names of
the methods that give features are timm's.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

Tail = Callable[[Tensor, Tensor, nn.Module, nn.Module], Tensor]
"""The end of a residual block: (inner [N, C, H, W], shortcut [N, C, H, W], norm, se) -> [N, C, H, W]."""


class Network(nn.Module):
    """A network that knows its parts."""

    small = False  # for images of 32x32 pixels: a GPU computes a layer faster than the host starts it

    def parts(self) -> Iterator[nn.Module]:
        """Yield what is compiled by itself, so that DDP can reduce the gradients of one part during the next."""
        yield self


class Staged(Network):
    """A network of a `stem`, `stages` that hold units, perhaps a `last` part behind them, and a classifier `fc`:
    [N, 3, H, W] -> logits [N, classes].
    """

    stem: nn.Module
    stages: nn.Sequential
    last: nn.Module
    fc: nn.Linear
    side = 224  # of the images that it is made for

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
        x = self.pool(x)
        return x if pre_logits else self.fc(x)

    def pool(self, x: Tensor) -> Tensor:
        """Compute what the classifier sees of the last map: [N, C, H', W'] -> [N, C]."""
        return x.mean((2, 3))

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Describe the map of each stage: channels `num_chs`, `reduction` of the image's side, name of the `module`."""
        net, described = copy.deepcopy(self).to("meta"), []
        _, maps = net.forward_intermediates(torch.empty(2, 3, self.side, self.side, device="meta"))
        for (name, _), x in zip(self.stages.named_children(), maps, strict=True):
            reduction = 2 ** round(math.log2(self.side / x.shape[2]))
            described.append({"num_chs": x.shape[1], "reduction": reduction, "module": f"stages.{name}"})
        return described

    def parts(self) -> Iterator[nn.Module]:
        for name, child in self.named_children():
            if name == "stages":
                for stage in child.children():
                    yield from stage.children()
            elif name in ("stem", "last") and any(child.children()):
                yield child


class TailBlock(nn.Module):
    """A residual block that leaves its end to `tail`; `plain` computes it layer by layer."""

    plain: Tail
    tail: Tail
    fusable: bool  # whether the end is ReLU of the shortcut plus SE, or nothing, of BN; SE averages the map
