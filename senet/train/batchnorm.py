"""Batch normalisation in training: running statistics, each rank's own unless synchronised or frozen."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from senet.distributed import World
from senet.errors import UsageError


class BatchNormStats:
    """The running means and variances of a net, read and written as one vector [n]: few kernels, however many layers.

    The buffers are collected once, in the order of the modules: walking over modules takes longer than copying them.
    """

    def __init__(self, net: nn.Module) -> None:
        self.norms = {name: module for name, module in net.named_modules() if isinstance(module, _BatchNorm)}
        named = {
            f"{name}.{kind}": buffer
            for name, norm in self.norms.items()
            for kind in ("running_mean", "running_var")
            if (buffer := getattr(norm, kind)) is not None
        }
        self.names, self.buffers = list(named), list(named.values())
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

    def averaged(self, state: Mapping[str, Tensor], per_rank: Tensor | None) -> dict[str, Tensor]:
        """Return a state dict with the mean of `per_rank` [ranks, n], unless None, for its statistics. No copy."""
        if per_rank is None or not self.buffers:
            return dict(state)
        return {**state, **dict(zip(self.names, per_rank.mean(0).split(self.sizes), strict=True))}

    @torch.no_grad()
    def restore_unless(self, finite: Tensor, before: Tensor) -> None:
        """Go back to `before`, what `pack` returned, unless `finite`: a bool that may stay on the device."""
        if self.buffers:
            self.unpack(torch.where(finite, self.pack(), before))

    def average(self, world: World) -> None:
        """Replace them by their mean over ranks: before validation, so that all ranks evaluate the same net."""
        if world.size > 1 and self.buffers:
            self.unpack(world.all_reduce_sum(self.pack()) / world.size)

    def freeze(self) -> list[nn.Parameter]:
        """Use them as they are, until the net's next `train`, and return the parameters that are to stay as well."""
        for norm in self.norms.values():
            norm.eval()
        return [parameter for norm in self.norms.values() for parameter in norm.parameters(recurse=False)]


def synchronised(net: nn.Module, world: World) -> nn.Module:
    """Return `net` with SyncBatchNorm if there are several ranks. Raises UsageError on CPUs: torch has none."""
    if world.size == 1:
        return net
    if world.device.type == "cpu":
        raise UsageError("bn.sync: SyncBatchNorm needs GPUs, and this runs on CPUs; set bn.sync=false, or use one rank")
    from timm.layers import convert_sync_batchnorm  # torch's leaves out the activations of timm's layers

    synced: nn.Module = convert_sync_batchnorm(net)
    return synced
