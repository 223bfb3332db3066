"""The running statistics of batch normalisation, which every rank gathers from its own images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from senet.world import World


def buffers(net: nn.Module) -> list[Tensor]:
    """The running means and variances of `net`, in the order of its modules."""
    norms = [m for m in net.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    return [b for m in norms for b in (m.running_mean, m.running_var) if b is not None]


def pack(net: nn.Module) -> Tensor:
    """All of them as one vector [n]."""
    parts = buffers(net)
    return torch.cat([b.detach().flatten() for b in parts]) if parts else torch.zeros(0)


@torch.no_grad()
def unpack(net: nn.Module, vector: Tensor) -> None:
    """Set them from what `pack` gave."""
    parts = buffers(net)
    for buffer, part in zip(parts, vector.split([b.numel() for b in parts]) if parts else (), strict=True):
        buffer.copy_(part.view_as(buffer))


def average(net: nn.Module, world: World) -> None:
    """Make them the mean over ranks: done before validation, so that all ranks judge the same net."""
    if world.size > 1 and buffers(net):
        unpack(net, world.sum(pack(net)) / world.size)
