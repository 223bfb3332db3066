"""The training loop: one path for all precisions, nothing in it that waits for the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp.autocast_mode import autocast
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.optim.swa_utils import update_bn

from senet import models
from senet.config import Config
from senet.data.endless import noise
from senet.data.loader import Batch, TrainLoader
from senet.distributed import World
from senet.execution.execution import Execution, prepare
from senet.train.batchnorm import BatchNormStats, synchronised
from senet.train.cuda_graph import GraphedStep
from senet.train.finetune import freeze, scale_head
from senet.train.hooks import Hooks
from senet.train.meter import Meter
from senet.train.nonfinite import NonFiniteGuard
from senet.train.optimiser import build as build_optimiser
from senet.train.optimiser import set_learning_rate
from senet.train.schedule import learning_rate

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Trainer:
    """The bare `net`, the `model` that DDP may wrap, optimiser, loss scale, and the loop that changes them."""

    def __init__(
        self,
        config: Config,
        world: World,
        model: nn.Module,
        optimiser: Optimizer,
        execution: Execution,
        hooks: Hooks | None = None,
    ) -> None:
        """Take a net that was prepared for `execution` on its device."""
        self.config, self.world, self.model, self.optimiser = config, world, model, optimiser
        set_tf32(config)
        self.execution, self.hooks = execution, hooks or Hooks()
        self.net = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        self.parameters = [p for p in self.net.parameters() if p.requires_grad]
        self.batch_per_rank = config.batch // world.size
        self.scaler = GradScaler(world.device.type, enabled=config.precision == "fp16")
        self.guard = NonFiniteGuard(optimiser)
        self.statistics = BatchNormStats(self.net)
        graphed = (self.step, self.net, optimiser, self.scaler, self._changed)
        self.graphed = GraphedStep(*graphed) if execution.graph else None
        self.frozen: list[nn.Parameter] = []  # those of BN, when it is frozen
        self.losses: list[float] = []  # of the validations so far, one an epoch: a plateau shows in them
        self.skipped: list[tuple[int, int]] = []  # stretches of steps, first and last, that are left out
        self.hooks.attach(self)

    @classmethod
    def build(
        cls,
        config: Config,
        world: World,
        execution: Execution,
        hooks: Hooks | None = None,
        start: Callable[[nn.Module], object] = lambda net: None,
    ) -> Trainer:
        """Return the trainer of a fresh net, which depends on `config.seed` alone and on the weights that `start` puts
        into it: on the rank's device, computed as `execution` says, wrapped in DDP if there are several ranks.

        Raises UsageError for a setting that the net or the machine cannot follow.
        """
        torch.manual_seed(config.seed)
        net = models.build(config.net, config.data.classes)
        start(net)
        freeze(net, config.finetune.freeze)
        net.to(world.device)
        if config.bn.sync:
            net = synchronised(net, world)
        model = world.distribute(prepare(net, execution), config.compress)
        optimiser = scale_head(build_optimiser(net, config.optim), net, config.finetune.head_lr)
        return cls(config, world, model, optimiser, execution, hooks)

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
        freeze = self.config.bn.freeze
        self.frozen = self.statistics.freeze() if freeze is not None and epoch >= freeze else []
        self.hooks.train(epoch, first)
        launch = self.graphed or self.step
        schedule, optim, epochs = self.config.schedule, self.config.optim, self.config.epochs
        with closing(loader.batches(epoch, first)) as batches:
            for step in range(first, end):
                number = epoch * loader.steps + step
                # What the net draws (dropout) follows from the position alone, so there is no generator to save.
                self._seed(number)
                rate = learning_rate(schedule, optim.lr, epoch + step / loader.steps, epochs, self.losses)
                set_learning_rate(self.optimiser, rate)
                finite = launch(self._micro_batches(loader, batches, number), meter, loader.accumulation_steps)
                self.guard.record(number, finite)
                self.hooks.after_step(number, finite)
                yield step + 1

    def _micro_batches(self, loader: TrainLoader, batches: Iterator[Batch], number: int) -> Iterator[Batch]:
        """The micro-batches of one step; each is computed before the next one is fetched."""
        for micro in range(loader.accumulation_steps):
            self.hooks.before_data(number, loader.waited)
            batch = next(batches)
            self.hooks.before_compute(number, micro, batch)
            yield batch
            self.hooks.after_compute(number, loader.waited)

    def step(self, micro_batches: Iterable[Batch], meter: Meter, accumulation_steps: int = 1) -> Tensor:
        """Make one step on all of `micro_batches`. Return whether it was made: a bool on the device, which decides."""
        before = self.statistics.pack()
        for number, batch in enumerate(micro_batches, start=1):
            self.backward(batch, meter, last=number == accumulation_steps)
        return self._update(before)

    def backward(self, batch: Batch, meter: Meter, last: bool = True) -> None:
        """Add the gradients of one micro-batch; with the `last` one of a step they are reduced over the ranks.

        They are divided by the rank's part of the batch, so that DDP's mean over ranks is that of the global batch.
        """
        with self.world.accumulate(self.model, last):
            with precision(self.config, self.world.device):
                logits = self.model(batch.images)
            losses = self._losses(logits.float(), batch)
            self.scaler.scale(losses.sum() / self.batch_per_rank).backward()
        meter.add(losses, logits, batch.labels)

    def _update(self, before: Tensor) -> Tensor:
        """Update the weights, unless a gradient is not finite: then BN statistics, too, go back to what they were
        `before` the step. Gradients are those of the global batch, so all ranks decide alike.
        """
        for parameter in self.frozen:
            parameter.grad = None  # optimisers pass over it; DDP, which knows nothing of this, has reduced it
        if not self.scaler.is_enabled():  # a GradScaler checks them itself
            self.guard.check([p.grad for p in self.parameters if p.grad is not None])
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        finite = self.guard.finite()
        self.statistics.restore_unless(finite, before)
        return finite

    def recalibrate(self, loader: TrainLoader, epoch: int, stop: Callable[[], bool] = lambda: False) -> None:
        """Compute BN statistics anew, for the weights that the net has now, as the mean over the micro-batches of the
        first steps of an epoch, as many as the config says ("precise BN", Wu and Johnson 2021). `stop`, asked after
        each, ends it early.
        """
        micro_batches = min(self.config.bn.recalibrate, loader.steps) * loader.accumulation_steps
        if not micro_batches:
            return

        def images() -> Iterator[Tensor]:
            for batch in islice(batches, micro_batches):
                yield batch.images
                if stop() and not self.config.bn.sync:  # there the ranks must take equally many
                    return

        self._seed(epoch * loader.steps)
        with closing(loader.batches(epoch, 0)) as batches, precision(self.config, self.world.device):
            update_bn(images(), self.net)

    def rehearse(self, images: int) -> None:
        """Compute once, on made-up images, what the run will compute for hours, so that what would fail then fails now;
        then undo it. `images` of a micro-batch.

        It also settles the order in which DDP reduces gradients, which its first backward pass finds out: without it
        the first step after a resume would add them up in another order than an undisturbed run does.
        """
        device, data = self.world.device, self.config.data
        before = {name: value.clone() for name, value in self.net.state_dict().items()}
        dtype, layout = DTYPES[self.config.precision], self.execution.memory_format
        self.model.train()
        self.backward(noise(images, data.crop, data.classes, device, dtype, layout), Meter(device))
        self.optimiser.zero_grad(set_to_none=True)
        self.net.load_state_dict(before)

    def _changed(self, meter: Meter) -> list[Tensor]:
        """Every tensor that a step changes in place."""
        state = [value for each in self.optimiser.state.values() for value in each.values()]
        return [t for t in (*self.net.parameters(), *self.net.buffers(), *state, meter.sums) if isinstance(t, Tensor)]

    def _losses(self, logits: Tensor, batch: Batch) -> Tensor:
        def losses(labels: Tensor) -> Tensor:
            return F.cross_entropy(logits, labels, label_smoothing=self.config.optim.label_smoothing, reduction="none")

        if batch.others is None or batch.weights is None:
            return losses(batch.labels)
        return torch.lerp(losses(batch.others), losses(batch.labels), batch.weights)

    def _seed(self, step: int) -> None:
        """Seed what the net draws from, on the host and on its device, by seed, step and rank.

        `torch.manual_seed` would visit every device there might be, which takes longer than a small net's kernels.
        """
        parts = self.config.seed * 0x9E3779B97F4A7C15, step * 0xBF58476D1CE4E5B9, self.world.rank * 0x94D049BB133111EB
        number, device = sum(parts) % 2**63, self.world.device
        torch.default_generator.manual_seed(number)
        if device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            torch.cuda.default_generators[index].manual_seed(number)


def precision(config: Config, device: torch.device) -> autocast:
    """Return the context in which the net runs forward."""
    dtype = DTYPES[config.precision]
    return autocast(device.type, dtype, enabled=dtype != torch.float32)


def set_tf32(config: Config) -> None:
    """Let this process make convolutions and products of fp32 numbers in TF32 if the config says so, and only then.

    torch's own default is TF32 for convolutions, fp32 for products.
    """
    allowed = config.precision == "tf32"
    torch.backends.cudnn.allow_tf32 = allowed
    torch.set_float32_matmul_precision("high" if allowed else "highest")
