"""The loop: one path for all precisions, nothing in it that waits for the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp.autocast_mode import autocast
from torch.amp.grad_scaler import GradScaler

from senet.config import Config
from senet.data.loader import Batch, TrainLoader
from senet.distributed import World
from senet.system import faults
from senet.train.batchnorm import BatchNormStats
from senet.train.cuda_graph import GraphedStep
from senet.train.ledger import Ledger
from senet.train.meter import Meter
from senet.train.optimiser import Found, set_learning_rate
from senet.train.schedule import learning_rate
from senet.train.stragglers import StepTimer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Trainer:
    """What changes while training: model, optimiser, scaler. `model` is the wrapped net.

    With `graph` a whole step is launched as one CUDA graph (see `senet.train.cuda_graph`, which says where that is not
    possible).
    """

    def __init__(
        self,
        config: Config,
        world: World,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        note: Callable[[str, int], None],
        graph: bool = False,
        pace: StepTimer | None = None,
    ) -> None:
        self.config, self.world, self.model, self.optimiser = config, world, model, optimiser
        self.scaler = GradScaler(world.device.type, enabled=config.precision == "fp16")
        self.batch_per_rank = config.batch // world.size
        self.note = note  # told (phase, step) as the loop goes on
        self.pace = pace
        self.ledger = Ledger(world.rank, world.size)
        self.net = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        self.parameters = [p for p in self.net.parameters() if p.requires_grad]
        self.statistics = BatchNormStats(self.net)
        self.found = Found(optimiser)
        self.replay = GraphedStep(self.step, self.net, optimiser, self.scaler) if graph else None
        self.skipped: list[tuple[int, int]] = []  # stretches of steps, first and last, that are left out
        self.consecutive_skips = 0
        self._finite: list[tuple[int, Tensor]] = []  # since the last look: step, and whether its gradients were finite

    def steps(self, loader: TrainLoader, epoch: int, first: int, meter: Meter) -> Iterator[int]:
        """Train on what is left of an epoch from step `first`, yielding after each step how many are done."""
        while first < loader.steps:
            skip = next((last for begin, last in self.skipped if begin <= epoch * loader.steps + first <= last), None)
            if skip is not None:
                first = min(skip + 1 - epoch * loader.steps, loader.steps)
                yield first
                continue
            begins = [begin - epoch * loader.steps for begin, _ in self.skipped]
            end = min([begin for begin in begins if begin > first] + [loader.steps])
            yield from self._stretch(loader, epoch, first, end, meter)
            first = end

    def _stretch(self, loader: TrainLoader, epoch: int, first: int, end: int, meter: Meter) -> Iterator[int]:
        self.model.train()
        with closing(loader.batches(epoch, first)) as batches:
            for step in range(first, end):
                number = epoch * loader.steps + step
                # What the net draws (dropout) follows from the position alone, so there is no generator to save.
                seed(_mix(self.config.seed, number, self.world.rank), self.world.device)
                set_learning_rate(self.optimiser, self.learning_rate(epoch + step / loader.steps))
                before = self.statistics.pack()
                for micro in range(loader.accumulation_steps):
                    self.note("data", number)
                    if self.pace:
                        self.pace.begin(loader.waited)
                    faults.meet("data", number)
                    batch = next(batches)
                    self.ledger.note(number, micro, loader.accumulation_steps, batch.keys)
                    self.note("compute", number)
                    if faults.nan(number):
                        batch.images[0] = float("nan")
                    if self.replay is None:
                        self.backward(batch, meter, last=micro == loader.accumulation_steps - 1)
                    if self.pace:
                        self.pace.end(loader.waited)
                finite = self.update(before) if self.replay is None else self.replay(batch, meter)
                self._finite.append((number, finite))
                yield step + 1

    def step(self, batch: Batch, meter: Meter) -> Tensor:
        """A whole step on one batch: what a graph holds. Returns whether it was made, as `update` does."""
        before = self.statistics.pack()
        self.backward(batch, meter)
        return self.update(before)

    def update(self, before: Tensor) -> Tensor:
        """One step of SGD; none where a gradient is not finite. The device decides, and the host need not know.

        Gradients are those of the global batch, so all ranks decide alike. BatchNormStats go back to what they were
        before the step. Returns whether the step was made, a bool on the device.
        """
        if not self.scaler.is_enabled():  # a GradScaler looks itself
            self.found.look([p.grad for p in self.parameters if p.grad is not None])
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        finite = self.found.nothing()
        self.statistics.settle(finite, before)
        return finite

    def nonfinite_steps(self) -> list[int]:
        """The steps since the last call that were left out; `row` counts those in a row up to now. Waits for the
        device.
        """
        if not self._finite:
            return []
        found = torch.stack([finite for _, finite in self._finite]).tolist()
        for finite in found:
            self.consecutive_skips = 0 if finite else self.consecutive_skips + 1
        bad = [number for (number, _), finite in zip(self._finite, found, strict=True) if not finite]
        self._finite.clear()
        return bad

    def backward(self, batch: Batch, meter: Meter, last: bool = True) -> None:
        """Add the gradients of one micro-batch; divided by the rank's share, so that DDP's mean is that of the global
        batch.
        """
        with self.world.accumulate(self.model, last):
            with precision(self.config, self.world.device):
                logits = self.model(batch.images)
            losses = self._losses(logits.float(), batch)
            self.scaler.scale(losses.sum() / self.batch_per_rank).backward()
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


def seed(number: int, device: torch.device) -> None:
    """Seed what nets draw from, on the host and on `device`.

    `torch.manual_seed` would visit every device there might be, which takes longer than a small net's kernels.
    """
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.default_generators[
            torch.cuda.current_device() if device.index is None else device.index
        ].manual_seed(number)


def _mix(seed: int, step: int, rank: int) -> int:
    return (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) % 2**63
