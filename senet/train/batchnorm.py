"""The running statistics of batch normalisation, which every rank gathers from its own images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from senet.distributed import World


class BatchNormStats:
    """The running means and variances of `net`, in the order of its modules, found once: a walk over modules costs more
    than a copy.

    They are read and written as one vector [n]: few kernels, however many layers there are.
    """

    def __init__(self, net: nn.Module) -> None:
        norms = [m for m in net.modules() if isinstance(m, _BatchNorm)]
        self.buffers = [b for m in norms for b in (m.running_mean, m.running_var) if b is not None]
        self.sizes = [b.numel() for b in self.buffers]

    def pack(self) -> Tensor:
        return torch.cat(self.buffers) if self.buffers else torch.zeros(0)

    @torch.no_grad()
    def unpack(self, vector: Tensor) -> None:
        if self.buffers:
            torch._foreach_copy_(self.buffers, list(vector.split(self.sizes)))

    @torch.no_grad()
    def settle(self, finite: Tensor, before: Tensor) -> None:
        """Keep them where `finite`, a bool on the device; else go back to what they were `before`. The host does not
        learn which.
        """
        if self.buffers:
            self.unpack(torch.where(finite, self.pack(), before))

    def average(self, world: World) -> None:
        """Make them the mean over ranks: done before validation, so that all ranks judge the same net."""
        if world.size > 1 and self.buffers:
            self.unpack(world.all_reduce_sum(self.pack()) / world.size)
