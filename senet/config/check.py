"""Checks what no single type can say: settings that do not go together, and schedules that never act."""

from __future__ import annotations

from typing import Any

from senet.config.nets import SE, Basic, Bottleneck, ResNet
from senet.config.schema import LAMB, LARS, SGD, Adam, Config, Folder, Plateau
from senet.errors import UsageError

HIGH = 0.05  # learning rate of Adam and LAMB: whoever sets it has written it for SGD


def check(config: Config) -> None:
    """Refuse settings that do not go together. Raises UsageError naming the key, its value and the remedy."""
    _check_net(config)
    _check_data(config)
    _check_schedule(config)
    if isinstance(config.optim, SGD | LARS) and config.optim.nesterov and config.optim.momentum == 0:
        raise UsageError("optim.nesterov: true needs a momentum above 0; set optim.momentum=0.9")


def warnings(config: Config) -> list[str]:
    """Return a sentence for each setting that may not be meant as it stands."""
    schedule, optim, epochs = config.schedule, config.optim, config.epochs
    if not epochs:
        return []
    found = []
    higher = "the learning rate stays higher than the schedule says"
    if never := [f"{epoch:g}" for epoch in getattr(schedule, "milestones", ()) if epoch >= epochs]:
        found.append(
            f"schedule.milestones: {', '.join(never)} are beyond the end of the run (epochs: {epochs}); {higher}"
        )
    if isinstance(schedule, Plateau) and schedule.patience + 2 >= epochs:
        found.append(
            f"schedule.patience: {schedule.patience} epochs are never waited for in a run of {epochs}; {higher}"
        )
    if config.bn.freeze is not None and config.bn.freeze >= epochs:
        found.append(f"bn.freeze: {config.bn.freeze} is beyond the end of the run (epochs: {epochs}); BN is not frozen")
    if isinstance(optim, Adam | LAMB) and optim.lr > HIGH:
        found.append(f"optim.lr: {optim.lr:g} is far above what {optim.name} is run with (about 0.001 to 0.01)")
    return found


def _need(config: Config, ok: bool, key: str, remedy: str) -> None:
    """Raise UsageError with a key's value and the remedy unless `ok`."""
    if not ok:
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part)
        raise UsageError(f"{key}: {value!r} is out of range: {remedy}")


def _check_net(config: Config) -> None:
    net = config.net
    smallest = getattr(net, "smallest", 1)
    _need(config, config.data.crop >= smallest, "data.crop", f"{net.family} needs images of at least {smallest} pixels")
    if not isinstance(net, ResNet):
        return
    stages = len(net.blocks)
    _need(config, len(net.widths) == stages, "net.widths", f"net.blocks has {stages} stages, give as many widths")
    if isinstance(net, Bottleneck):
        _need(
            config, not any(width % net.groups for width in net.widths), "net.widths",
            f"each must be a multiple of net.groups ({net.groups})",
        )  # fmt: skip
        narrow = [width * net.reduce for width in net.widths]
        _need(config, all(w >= 1 and w == int(w) for w in narrow), "net.reduce", "must leave whole numbers of channels")
    if net.zero_init and net.preactivation:
        raise UsageError(
            "net.zero_init: would silence each branch for good in a pre-activation net, whose last BN is not its end; "
            "set net.zero_init=false"
        )
    if net.se is not None:
        _check_se(config, net, net.se)


def _check_se(config: Config, net: ResNet, se: SE) -> None:
    last = 1 + len(net.blocks)
    if se.stages is not None:
        _need(config, se.stages != (), "net.se.stages", "an SE net without SE blocks; write net.se: null")
        _need(config, all(2 <= s <= last for s in se.stages), "net.se.stages", f"this net's stages are 2 to {last}")
    if se.place == "conv3x3" and isinstance(net, Basic):
        raise UsageError(
            "net.se.place: 'conv3x3' needs bottleneck blocks; use standard, pre, post or identity with net.block basic"
        )


def _check_data(config: Config) -> None:
    data, augment = config.data, config.data.augment
    _need(config, config.batch % augment.repeats == 0, "data.augment.repeats", f"must divide batch ({config.batch})")
    if not isinstance(data, Folder):
        return
    _need(config, data.resize >= data.crop, "data.resize", f"must be at least data.crop ({data.crop})")
    _need(config, data.area[0] <= data.area[1] <= 1, "data.area", "must be 0 < smallest <= largest <= 1")
    _need(config, data.aspect[0] <= data.aspect[1], "data.aspect", "must be 0 < smallest <= largest")
    if grow := data.augment.grow:
        _need(config, grow.start <= data.crop, "data.augment.grow.start", f"must be at most data.crop ({data.crop})")
        _need(
            config, grow.epochs < config.epochs or not config.epochs, "data.augment.grow.epochs",
            f"must end before the run (epochs: {config.epochs}), or no image is ever of data.crop",
        )  # fmt: skip


def _check_schedule(config: Config) -> None:
    schedule = config.schedule
    milestones = getattr(schedule, "milestones", ())
    _need(config, list(milestones) == sorted(milestones), "schedule.milestones", "must rise")
    if config.bn.recalibrate and config.bn.freeze is not None:
        raise UsageError("bn.recalibrate: would undo bn.freeze, to whose statistics the net has grown; leave one out")
    if schedule.warmup:
        _need(
            config, schedule.warmup.epochs < max(config.epochs, 1), "schedule.warmup.epochs",
            f"must end before the run (epochs: {config.epochs}); shorten it, or set schedule.warmup=none",
        )  # fmt: skip
