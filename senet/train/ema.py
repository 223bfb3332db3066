"""An exponential moving average of the weights, kept beside those that are trained.

It is no part of the training: with it or without, the trained weights are the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from senet import config
from senet.train.hooks import Hooks
from senet.train.trainer import Trainer


class EMA(Hooks):
    """Averages weights, the same on all ranks, and each rank's own BN statistics, after every step that was made."""

    def __init__(self, settings: config.EMA) -> None:
        self.settings = settings

    def attach(self, trainer: Trainer) -> None:
        self.trainer, self.net = trainer, dict(trainer.net.named_parameters())
        self.living = [p.detach() for p in self.net.values()]
        self._begin()

    def _begin(self) -> None:
        self.weights = [p.clone() for p in self.living]
        self.statistics = self.trainer.statistics.pack().clone()

    def train(self, epoch: int, first: int) -> None:
        if epoch == first == 0:
            self._begin()  # the weights may be others than those that the trainer was made with: trained ones

    def decay(self, step: int) -> float:
        """Return the share of the average that `step`, from 0 over the whole run, leaves in place."""
        return min(self.settings.decay, (1 + step) / (10 + step)) if self.settings.warmup else self.settings.decay

    def after_step(self, step: int, finite: Tensor) -> None:
        # A step that was left out weighs 0: the host need not know of it.
        weight = finite * (1 - self.decay(step))
        change = torch._foreach_sub(self.living, self.weights)
        torch._foreach_mul_(change, weight)
        torch._foreach_add_(self.weights, change)
        self.statistics += (self.trainer.statistics.pack() - self.statistics) * weight

    @contextmanager
    def in_net(self) -> Iterator[None]:
        """Have the averages in the net in place of what is trained, which returns with its own statistics."""
        trained, statistics = [p.clone() for p in self.living], self.trainer.statistics.pack()
        torch._foreach_copy_(self.living, self.weights)
        self.trainer.statistics.unpack(self.statistics)
        try:
            yield
        finally:
            torch._foreach_copy_(self.living, trained)
            self.trainer.statistics.unpack(statistics)

    def state_dict(self) -> dict[str, Any]:
        """Return `net`, to evaluate, and `statistics` [ranks, n], to resume; whole on rank 0. All ranks call it."""
        per_rank = self.trainer.world.gather(self.statistics)
        named = {**self.trainer.net.state_dict(), **dict(zip(self.net, self.weights, strict=True))}
        return {"net": self.trainer.statistics.averaged(named, per_rank), "statistics": per_rank}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to what `state_dict` returned; if it is empty, begin with the weights that the net has now."""
        if not state:
            return self._begin()
        torch._foreach_copy_(self.weights, [state["net"][name].to(self.statistics.device) for name in self.net])
        statistics, world = state["statistics"], self.trainer.world
        own = statistics[world.rank] if len(statistics) == world.size else statistics.mean(0)
        self.statistics.copy_(own)
        return None


def averaged(hooks: dict[str, Any]) -> dict[str, Tensor] | None:
    """Return the averaged net of a checkpoint's `hooks`, as a state dict; None if its run kept no average."""
    state: dict[str, Any] = hooks.get(EMA.__name__, {})
    return state.get("net")
