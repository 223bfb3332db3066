"""How a net is computed: memory layout, the residual tail, compilation. Last bits of a result depend on it, and speed; nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn


@dataclass(frozen=True)
class Execution:
    """Kept in the run folder and in checkpoints, so that a resumed run computes as it did before."""

    layout: Literal["nhwc", "nchw"] = "nhwc"

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.layout == "nhwc" else torch.contiguous_format


def prepare(net: nn.Module, execution: Execution) -> nn.Module:
    """Make `net` compute so, in place; its state dict and its results stay."""
    return net.to(memory_format=execution.memory_format)
