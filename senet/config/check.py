"""Checks what no single type can say: settings that do not go together, and schedules that never act."""

from collections.abc import Iterator
from itertools import chain
from operator import attrgetter

from senet.config.nets import Basic, Bottleneck, ResNet
from senet.config.schema import LAMB, LARS, SGD, Adam, Config, Folder, Plateau
from senet.errors import UsageError

HIGH = 0.05  # learning rate of Adam and LAMB: whoever sets it has written it for SGD

Rule = tuple[bool, str, str]  # whether it is kept, the key whose value breaks it otherwise, and the remedy


def check(config: Config) -> None:
    """Refuse settings that do not go together. Raises UsageError naming the key, its value and the remedy."""
    for kept, key, remedy in chain(_of_net(config), _of_data(config), _of_recipe(config)):
        if not kept:
            raise UsageError(f"{key}: {attrgetter(key)(config)!r} is out of range: {remedy}")


def warnings(config: Config) -> list[str]:
    """Return a sentence for each setting that may not be meant as it stands."""
    schedule, optim, epochs = config.schedule, config.optim, config.epochs
    if not epochs:
        return []
    found, end = [], f"the end of the run (epochs: {epochs})"
    rate = "the learning rate stays higher than the schedule says"
    if never := [f"{epoch:g}" for epoch in getattr(schedule, "milestones", ()) if epoch >= epochs]:
        found.append(f"schedule.milestones: {', '.join(never)} are beyond {end}; {rate}")
    if isinstance(schedule, Plateau) and schedule.patience + 2 >= epochs:
        found.append(f"schedule.patience: {schedule.patience} epochs are never waited for in a run of {epochs}; {rate}")
    if config.bn.freeze is not None and config.bn.freeze >= epochs:
        found.append(f"bn.freeze: {config.bn.freeze} is beyond {end}; BN is not frozen")
    if isinstance(optim, Adam | LAMB) and optim.lr > HIGH:
        found.append(f"optim.lr: {optim.lr:g} is far above what {optim.name} is run with (about 0.001 to 0.01)")
    return found


def _of_net(config: Config) -> Iterator[Rule]:
    net = config.net
    smallest = getattr(net, "smallest", 1)
    yield config.data.crop >= smallest, "data.crop", f"{net.family} needs images of at least {smallest} pixels"
    if not isinstance(net, ResNet):
        return
    stages, last = len(net.blocks), 1 + len(net.blocks)
    yield len(net.widths) == stages, "net.widths", f"net.blocks has {stages} stages, give as many widths"
    if isinstance(net, Bottleneck):
        whole = all(width % net.groups == 0 for width in net.widths)
        yield whole, "net.widths", f"each must be a multiple of net.groups ({net.groups})"
        narrow = [width * net.reduce for width in net.widths]
        yield all(w >= 1 and w == int(w) for w in narrow), "net.reduce", "must leave whole numbers of channels"
    if net.zero_init and net.preactivation:
        # Its last BN is not the end of a branch.
        raise UsageError("net.zero_init: would silence a pre-activation net's branches; set net.zero_init=false")
    if net.se and net.se.stages is not None:
        yield net.se.stages != (), "net.se.stages", "an SE net without SE blocks; write net.se: null"
        yield all(2 <= s <= last for s in net.se.stages), "net.se.stages", f"this net's stages are 2 to {last}"
    if net.se and net.se.place == "conv3x3" and isinstance(net, Basic):
        raise UsageError("net.se.place: 'conv3x3' needs bottleneck blocks; use standard, pre, post or identity")


def _of_data(config: Config) -> Iterator[Rule]:
    data, end = config.data, f"must end before the run (epochs: {config.epochs})"
    yield config.batch % data.augment.repeats == 0, "data.augment.repeats", f"must divide batch ({config.batch})"
    if not isinstance(data, Folder):
        return
    yield data.resize >= data.crop, "data.resize", f"must be at least data.crop ({data.crop})"
    yield data.area[0] <= data.area[1] <= 1, "data.area", "must be 0 < smallest <= largest <= 1"
    yield data.aspect[0] <= data.aspect[1], "data.aspect", "must be 0 < smallest <= largest"
    if grow := data.augment.grow:
        yield grow.start <= data.crop, "data.augment.grow.start", f"must be at most data.crop ({data.crop})"
        ends = grow.epochs < config.epochs or not config.epochs
        yield ends, "data.augment.grow.epochs", f"{end}, or no image is ever of data.crop"


def _of_recipe(config: Config) -> Iterator[Rule]:
    schedule, optim, end = config.schedule, config.optim, f"must end before the run (epochs: {config.epochs})"
    milestones = getattr(schedule, "milestones", ())
    yield list(milestones) == sorted(milestones), "schedule.milestones", "must rise"
    if schedule.warmup:
        ends = schedule.warmup.epochs < max(config.epochs, 1)
        yield ends, "schedule.warmup.epochs", f"{end}; shorten it, or set schedule.warmup=none"
    if isinstance(optim, SGD | LARS) and optim.nesterov and optim.momentum == 0:
        raise UsageError("optim.nesterov: true needs a momentum above 0; set optim.momentum=0.9")
    frozen = "bn.freeze" if config.bn.freeze is not None else "finetune.freeze" if config.finetune.freeze else ""
    if config.bn.recalibrate and frozen:
        raise UsageError(f"bn.recalibrate: would undo {frozen}, to whose statistics the net has grown; leave one out")
