"""The running statistics of batch normalisation, which every rank gathers from its own images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from senet.distributed import World


class BatchNormStats:
    """The running means and variances of a net, read and written as one vector [n]: few kernels, however many layers.

    The buffers are collected once, in the order of the modules: walking over modules takes longer than copying them.
    """

    def __init__(self, net: nn.Module) -> None:
        norms = [m for m in net.modules() if isinstance(m, _BatchNorm)]
        self.buffers = [b for m in norms for b in (m.running_mean, m.running_var) if b is not None]
        self.sizes = [b.numel() for b in self.buffers]
        # On the net's device even if there are none: NCCL gathers nothing that is on the CPU.
        self.empty = torch.zeros(0, device=next(net.parameters()).device)

    def pack(self) -> Tensor:
        """Return a copy of all of them, float [n]."""
        return torch.cat(self.buffers) if self.buffers else self.empty

    @torch.no_grad()
    def unpack(self, vector: Tensor) -> None:
        """Set them to `vector`, as `pack` returned it."""
        if self.buffers:
            torch._foreach_copy_(self.buffers, list(vector.split(self.sizes)))

    @torch.no_grad()
    def restore_unless(self, finite: Tensor, before: Tensor) -> None:
        """Go back to `before`, what `pack` returned, unless `finite`: a bool on the device, which the host need not
        know.
        """
        if self.buffers:
            self.unpack(torch.where(finite, self.pack(), before))

    def average(self, world: World) -> None:
        """Replace them by their mean over ranks: before validation, so that all ranks evaluate the same net."""
        if world.size > 1 and self.buffers:
            self.unpack(world.all_reduce_sum(self.pack()) / world.size)
