"""Ways to train the same net: ours, a bare loop, and the loops of others as their users run them, written anew from how
they work.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from senet import config
from senet.config import Config
from senet.data.endless import Endless, noise
from senet.distributed import World
from senet.errors import UsageError
from senet.execution.execution import Execution, Layout, Tail, prepare
from senet.models import build
from senet.system.timing import Step
from senet.train import optimiser
from senet.train.meter import Meter
from senet.train.trainer import DTYPES, Trainer, precision

LOG_EVERY = 50  # steps, as launch.train has it

# timm's names of the same networks; of two for one, that of the net that computes what ours does.
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


def short(name: str) -> str:
    """Return `imagenet/se_resnet50:v1.5` for configs/imagenet/se_resnet50.yaml:v1.5."""
    return name.replace(".yaml", "").rpartition("configs/")[2]


def synthetic(name: str, *overrides: str, batch: int | None = None, crop: int | None = None) -> Config:
    """Load a config with noise in place of its data set. Raises UsageError."""
    loaded = config.load(name)
    data = ["data.set=synthetic", f"data.classes={loaded.data.classes}", f"data.crop={crop or loaded.data.crop}"]
    return config.load(name, [*data, f"batch={batch or loaded.batch}", *overrides])


def execution(text: str) -> Execution:
    """Return the Execution that a name such as `channels_last+analytic+compile` means. Raises UsageError."""
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


def label(how: Execution) -> str:
    """Return the name by which `execution` finds it."""
    return str(how).replace(" ", "+")


def resident(settings: Config, world: World, how: Execution) -> Any:
    """Return a loader whose one batch is on the device already, as ours give it: in the net's layout and precision."""
    data, dtype = settings.data, DTYPES[settings.precision]
    return Endless.of(noise(settings.batch, data.crop, data.classes, world.device, dtype, how.memory_format))


def ours(settings: Config, world: World, how: Execution, loader: Any = None) -> Step:
    """Return steps of the real Trainer, whose sums are read as often as a run reads them."""
    trainer, meter = Trainer.build(settings, world, how), Meter(world.device)
    steps = trainer.steps(loader or resident(settings, world, how), 0, 0, meter)

    def step() -> None:
        if next(steps) % LOG_EVERY == 0:
            meter.read()
            trainer.guard.nonfinite_steps()

    return step


def bare(settings: Config, world: World, how: Execution, loader: Any = None) -> Step:
    """Return steps of forward, backward, SGD and nothing else: no sums, no check of gradients, no log."""
    torch.manual_seed(0)
    net = prepare(build(settings.net, settings.data.classes).to(world.device), how).train()
    batches = (loader or resident(settings, world, how)).batches(0, 0)
    sgd, scaler = optimiser.build(net, settings.optim), _scaler(settings, world)
    return _loop(settings, world, net, sgd, lambda: next(batches)[:2], F.cross_entropy, scaler, lambda loss: None)


def timm_style(settings: Config, world: World, name: str, compiled: bool) -> Step:
    """Return steps of timm's net `name` in a loop like its train.py: AMP, channels_last, torch's own SGD, the loss read
    by the host in each step.
    """
    torch.manual_seed(0)
    net = build(config.from_dict({"net": {"timm": name}}).net, settings.data.classes).to(world.device)
    net = net.to(memory_format=torch.channels_last).train()
    groups = _groups(net, lambda name, parameter: parameter.ndim <= 1)
    sgd = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
    model: Any = torch.compile(net) if compiled else net
    batch = noise(settings.batch, settings.data.crop, settings.data.classes, world.device)[:2]
    seen: list[float] = []

    def after(loss: Tensor) -> None:
        seen[:] = [loss.item()]

    criterion = nn.CrossEntropyLoss()
    return _loop(settings, world, model, sgd, lambda: batch, criterion, _scaler(settings, world), after)


def nvidia_style(settings: Config, world: World) -> Step:
    """Return steps of our net in a loop like that of NVIDIA's examples: images come as contiguous float32 and are made
    channels_last in each step, the loss scale of fp16 is static, and in each step the host waits for the device and
    reads the loss.
    """
    torch.manual_seed(0)
    net = build(settings.net, settings.data.classes).to(world.device).to(memory_format=torch.channels_last).train()
    sgd = torch.optim.SGD(_groups(net, lambda name, parameter: "bn" in name), lr=0.1, momentum=0.875)
    scaler = _scaler(settings, world, init_scale=128, growth_interval=100_000_000)
    data = settings.data
    arrived = noise(settings.batch, data.crop, data.classes, world.device, layout=torch.contiguous_format)
    seen: list[float] = []

    def batch() -> tuple[Tensor, Tensor]:
        return arrived.images.contiguous(memory_format=torch.channels_last), arrived.labels

    def after(loss: Tensor) -> None:
        if loss.is_cuda:
            torch.cuda.synchronize(loss.device)
        seen[:] = [loss.item()]

    return _loop(settings, world, net, sgd, batch, nn.CrossEntropyLoss(label_smoothing=0.1), scaler, after)


def _loop(
    settings: Config,
    world: World,
    model: nn.Module,
    sgd: torch.optim.Optimizer,
    batch: Callable[[], Any],
    criterion: Callable[[Tensor, Tensor], Tensor],
    scaler: GradScaler,
    after: Callable[[Tensor], None],
) -> Step:
    """Return what a tutorial's loop does with a batch, and `after` with its loss."""

    def step() -> None:
        images, labels = batch()
        with precision(settings, world.device):
            loss = criterion(model(images), labels)
        scaler.scale(loss).backward()
        scaler.step(sgd)
        scaler.update()
        sgd.zero_grad(set_to_none=True)
        after(loss)

    return step


def _scaler(settings: Config, world: World, **how: Any) -> GradScaler:
    return GradScaler(world.device.type, enabled=settings.precision == "fp16", **how)


def _groups(net: nn.Module, spare: Callable[[str, nn.Parameter], bool]) -> list[dict[str, Any]]:
    spared = [parameter for name, parameter in net.named_parameters() if spare(name, parameter)]
    others = [parameter for name, parameter in net.named_parameters() if not spare(name, parameter)]
    return [{"params": spared, "weight_decay": 0.0}, {"params": others, "weight_decay": 1e-4}]
