"""Fine-tuning: parts of a net that stay as they are, and a classifier that learns at a rate of its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import nn
from torch.optim import Optimizer

from senet import models
from senet.errors import UsageError
from senet.train.hooks import Hooks

if TYPE_CHECKING:
    from senet.train.trainer import Trainer


def freeze(net: nn.Module, parts: Iterable[str | int]) -> None:
    """Let `parts` of the net, the stem or stages by numbers, need no gradients. Raises UsageError."""
    known = models.parts(net)
    for part in parts:
        if part not in known:
            raise UsageError(f"finetune.freeze: {part!r} is no part of this net; it has {', '.join(map(str, known))}")
        for parameter in known[part]:
            parameter.requires_grad_(False)


def scale_head(optimiser: Optimizer, net: nn.Module, scale: float) -> Optimizer:
    """Let the classifier learn at `scale` times the rate of the rest. Change the optimiser, and return it."""
    if scale != 1:
        own = {id(parameter) for parameter in models.classifier(net).parameters()}
        for group in optimiser.param_groups[:]:
            head = [parameter for parameter in group["params"] if id(parameter) in own]
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in own]
            if head:
                optimiser.param_groups.append({**group, "params": head, "lr_scale": scale})
        optimiser.param_groups[:] = [group for group in optimiser.param_groups if group["params"]]
    return optimiser


class Frozen(Hooks):
    """Keeps modules that are frozen whole in evaluation mode: BN statistics stay, nothing is random."""

    def attach(self, trainer: Trainer) -> None:
        self.modules = [
            module
            for module in trainer.net.modules()
            if (own := list(module.parameters())) and not any(parameter.requires_grad for parameter in own)
        ]

    def train(self, epoch: int, first: int) -> None:
        for module in self.modules:
            module.eval()
