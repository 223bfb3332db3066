"""What `senet.execution` may know of a network: its parts, and the blocks whose end can be computed otherwise.

A family whose networks are to be compiled part by part, or fused, says so here; others are plain modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

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
    """A network of `stages` that hold units, perhaps with a `stem` before them and `last` behind them."""

    stages: nn.Sequential

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
