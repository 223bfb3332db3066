"""Ways to train the same net: ours, a bare loop, and the loops of others as their users run them, written anew from how
they work.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp.autocast_mode import autocast
from torch.amp.grad_scaler import GradScaler

from senet import config
from senet.config import Config, Net, Synthetic, Timm
from senet.data.loader import BadImages, Batch
from senet.distributed import World
from senet.errors import UsageError
from senet.execution.execution import Execution, Layout, Tail, prepare
from senet.models import build
from senet.system.timing import Step
from senet.train.meter import Meter
from senet.train.optimiser import build as build_optimiser
from senet.train.trainer import DTYPES, Trainer

LOG_EVERY = 50  # steps, as launch.train has it

# timm's names of the same networks; where it has two of one, the one that computes what ours does.
TIMM = {
    "se_resnet50": "legacy_seresnet50",
    "se_resnet50:v1.5": "seresnet50",
    "se_resnet101": "legacy_seresnet101",
    "se_resnet152": "legacy_seresnet152",
    "se_resnext50_32x4d": "seresnext50_32x4d",
    "se_resnext101_32x4d": "seresnext101_32x4d",
    "senet154": "legacy_senet154",
    "resnet50:v1.5": "resnet50",
    "resnext50_32x4d": "resnext50_32x4d",
    "resnext101_32x4d": "resnext101_32x4d",
}


@dataclass(frozen=True)
class Setting:
    """What all contestants have in common."""

    device: torch.device
    batch: int
    crop: int
    classes: int
    precision: str  # fp32, bf16, fp16

    def config(self, net: Net) -> Config:
        data = Synthetic(classes=self.classes, crop=self.crop)
        return config.from_dict(
            config.to_dict(Config(net=net, data=data, batch=self.batch)) | {"precision": self.precision}
        )

    def data(self) -> tuple[Tensor, Tensor]:
        """(float32 [batch, 3, crop, crop] contiguous, int64 [batch]): noise, the same for all."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(self.batch, 3, self.crop, self.crop, generator=generator)
        return images.to(self.device), (torch.arange(self.batch) % self.classes).to(self.device)

    def cast(self) -> autocast:
        return autocast(self.device.type, DTYPES[self.precision], enabled=self.precision != "fp32")


def execution(text: str) -> Execution:
    """The Execution that a name such as `channels_last`, `contiguous+compile` or `channels_last+analytic+compile`
    means. Raises UsageError.
    """
    chosen: dict[str, Any] = {}
    for word in text.split("+"):
        if word in get_args(Layout):
            chosen["layout"] = word
        elif word in get_args(Tail):
            chosen["tail"] = word
        elif word in ("compile", "graph"):
            chosen[word] = True
        else:
            words = ", ".join((*get_args(Layout), *get_args(Tail), "compile", "graph"))
            raise UsageError(f"{text}: there is no execution {word!r}; join some of {words} by +")
    return Execution(**chosen)


def label(execution: Execution) -> str:
    """The name by which `execution` finds it."""
    return str(execution).replace(" ", "+")


class Endless:
    """A loader that gives the same micro-batches in each step, already on the device: what is left is the net and the
    loop.
    """

    steps, waited = 1 << 40, 0.0
    images, fingerprint, classes = 1 << 40, "", ()
    description: Mapping[str, Any] = {}

    def __init__(self, *micro: Batch) -> None:
        self.micro, self.accumulation_steps, self.bad = micro, len(micro), BadImages(0)

    def batches(self, epoch: int, step: int) -> Generator[Batch, None, None]:
        while True:
            yield from self.micro

    def names(self, step: int) -> list[str]:
        return []

    def close(self) -> None:
        pass


def ours(net: Net, setting: Setting, how: Execution) -> Step:
    """The real Trainer, with the looks that a run takes at its sums every so many steps."""
    config, world = setting.config(net), World(0, 1, setting.device)
    trainer = Trainer.build(config, world, how)
    images, labels = setting.data()
    meter = Meter(setting.device)
    # As our loaders give them: in the net's memory format, rounded already to what it computes in.
    given = images.to(DTYPES[setting.precision], memory_format=how.memory_format)
    loader: Any = Endless(Batch(given, labels))
    return looked_at(trainer, loader, meter)


def looked_at(trainer: Trainer, loader: Any, meter: Meter) -> Step:
    """The trainer's steps, one a call; its sums are read every LOG_EVERY of them."""
    steps = trainer.steps(loader, 0, 0, meter)

    def step() -> None:
        if next(steps) % LOG_EVERY == 0:
            meter.read()
            trainer.guard.nonfinite_steps()

    return step


def bare(net: Net, setting: Setting, how: Execution) -> Step:
    """Forward, backward, SGD and nothing else: no sums, no check of gradients, no log."""
    torch.manual_seed(0)
    module = prepare(build(net, setting.classes).to(setting.device), how).train()
    optimiser = build_optimiser(module, setting.config(net).optim)
    images, labels = setting.data()
    images = images.contiguous(memory_format=how.memory_format)
    return plain_loop(module, optimiser, setting, lambda: (images, labels))


def plain_loop(module: nn.Module, optimiser: torch.optim.Optimizer, setting: Setting, batch: Any) -> Step:
    """What a tutorial's loop does with a batch from `batch()`."""
    scaler = GradScaler(setting.device.type, enabled=setting.precision == "fp16")

    def step() -> None:
        images, labels = batch()
        with setting.cast():
            logits = module(images)
        scaler.scale(F.cross_entropy(logits.float(), labels)).backward()
        scaler.step(optimiser)
        scaler.update()
        optimiser.zero_grad(set_to_none=True)

    return step


def timm_style(name: str, setting: Setting, compiled: bool) -> Step:
    """timm's model in a loop like its train.py: AMP, channels_last, torch's own SGD, the loss read by the host in each
    step.
    """
    torch.manual_seed(0)
    module = build(Timm(name), setting.classes).to(setting.device).to(memory_format=torch.channels_last).train()
    decayed = [p for p in module.parameters() if p.ndim > 1]
    spared = [p for p in module.parameters() if p.ndim <= 1]
    groups = [{"params": spared, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 1e-4}]
    optimiser = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
    model: Any = torch.compile(module) if compiled else module
    criterion = nn.CrossEntropyLoss()
    scaler = GradScaler(setting.device.type, enabled=setting.precision == "fp16")
    images, labels = setting.data()
    images = images.contiguous(memory_format=torch.channels_last)
    shown = [0.0, 0]

    def step() -> None:
        with setting.cast():
            loss = criterion(model(images), labels)
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()
        optimiser.zero_grad()
        shown[0] += loss.item() * len(labels)
        shown[1] += len(labels)

    return step


def nvidia_style(net: Net, setting: Setting) -> Step:
    """Our net in a loop like that of NVIDIA's examples: images come as NCHW float32 and are made channels_last in each
    step, a static loss scale under AMP, and in each step the host waits for the device and reads the loss.
    """
    torch.manual_seed(0)
    module = build(net, setting.classes).to(setting.device).to(memory_format=torch.channels_last).train()
    spared = [p for name, p in module.named_parameters() if "bn" in name]
    others = [p for name, p in module.named_parameters() if "bn" not in name]
    groups = [{"params": spared, "weight_decay": 0.0}, {"params": others, "weight_decay": 1e-4}]
    optimiser = torch.optim.SGD(groups, lr=0.1, momentum=0.875)
    mixed = setting.precision == "fp16"
    scaler = GradScaler(setting.device.type, init_scale=128, growth_interval=100_000_000, enabled=mixed)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    images, labels = setting.data()
    shown: list[float] = []

    def step() -> None:
        arrived = images.contiguous(memory_format=torch.channels_last)
        with setting.cast():
            loss = criterion(module(arrived), labels)
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()
        optimiser.zero_grad()
        if setting.device.type == "cuda":
            torch.cuda.synchronize(setting.device)
        shown[:] = [loss.item()]

    return step
