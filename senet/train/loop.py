"""The loop: one path for all precisions, nothing in it that waits for the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp.autocast_mode import autocast
from torch.amp.grad_scaler import GradScaler

from senet.config import Config
from senet.data.loader import Batch, TrainLoader
from senet.schedule import learning_rate
from senet.train.meter import Meter
from senet.train.optimiser import set_learning_rate
from senet.world import World

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Trainer:
    """What changes while training: model, optimiser, scaler. `model` is the wrapped net."""

    def __init__(self, config: Config, world: World, model: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        self.config, self.world, self.model, self.optimiser = config, world, model, optimiser
        self.scaler = GradScaler(world.device.type, enabled=config.precision == "fp16")
        self.share = config.batch // world.size

    def steps(self, loader: TrainLoader, epoch: int, first: int, meter: Meter) -> Iterator[int]:
        """Train on what is left of an epoch from step `first`, yielding after each step how many are done."""
        self.model.train()
        with closing(loader.batches(epoch, first)) as batches:
            for step in range(first, loader.steps):
                # What the net draws (dropout) follows from the position alone, so there is no generator to save.
                torch.manual_seed(_mix(self.config.seed, epoch * loader.steps + step, self.world.rank))
                set_learning_rate(self.optimiser, self.learning_rate(epoch + step / loader.steps))
                for micro in range(loader.micro_batches):
                    self.backward(next(batches), meter, last=micro == loader.micro_batches - 1)
                self.scaler.step(self.optimiser)
                self.scaler.update()
                self.optimiser.zero_grad(set_to_none=True)
                yield step + 1

    def backward(self, batch: Batch, meter: Meter, last: bool = True) -> None:
        """Add the gradients of one micro-batch; divided by the rank's share, so that DDP's mean is that of the global batch."""
        with self.world.accumulate(self.model, last):
            with precision(self.config, self.world.device):
                logits = self.model(batch.images)
            losses = self._losses(logits.float(), batch)
            self.scaler.scale(losses.sum() / self.share).backward()
        meter.add(losses, logits, batch.labels)

    def _losses(self, logits: Tensor, batch: Batch) -> Tensor:
        def losses(labels: Tensor) -> Tensor:
            return F.cross_entropy(logits, labels, label_smoothing=self.config.optim.label_smoothing, reduction="none")

        if batch.others is None or batch.weights is None:
            return losses(batch.labels)
        return torch.lerp(losses(batch.others), losses(batch.labels), batch.weights)

    def learning_rate(self, epoch: float) -> float:
        return learning_rate(self.config.schedule, self.config.optim.lr, epoch, self.config.epochs)


def precision(config: Config, device: torch.device) -> autocast:
    """The context in which the net runs forward."""
    return autocast(device.type, DTYPES[config.precision], enabled=config.precision != "fp32")


def _mix(seed: int, step: int, rank: int) -> int:
    return (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) % 2**63
