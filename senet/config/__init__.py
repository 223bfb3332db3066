"""What a run computes: frozen dataclasses, read strictly from YAML.

Everything that can change a result is here; everything that cannot (paths, workers, device) is a flag of the launcher.
This module imports no torch, so that a config can be checked anywhere in milliseconds.

A config file is a mapping of the fields below plus two more keys: `base`, a file (relative to this one) that it
changes, and `variants`, named changes of it; `FILE:NAME` names a variant. Mappings merge key by key, everything else
replaces.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from senet.config import files
from senet.errors import UsageError


@dataclass(frozen=True)
class SE:
    """The Squeeze-and-Excitation block (section 3) and every setting of it that the paper tries (tables 10-16)."""

    ratio: int = 16
    squeeze: Literal["avg", "max", "none"] = "avg"
    gate: Literal["sigmoid", "tanh", "relu"] = "sigmoid"
    place: Literal["standard", "pre", "post", "identity", "conv3x3"] = "standard"
    stages: tuple[int, ...] | None = None  # the paper's numbers: 2-5, CIFAR 2-4; None is every stage
    bias: bool = True  # of the two FC layers: section 5 and the released nets have it, section 6 has not


@dataclass(frozen=True)
class Net:
    """A residual network as data, or `timm: NAME`, any model of that library.

    `widths` are those of the 3x3 convolutions, a stage each; a stage puts out `expansion` times its width. ResNeXt-50
    32x4d is ResNet-50 with widths doubled, expansion 2, groups 32. `reduce` is the width of a bottleneck's first 1x1 as
    a fraction of its 3x3's (SENet-154: a half).
    """

    timm: str | None = None
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    block: Literal["basic", "bottleneck"] = "bottleneck"
    widths: tuple[int, ...] = (64, 128, 256, 512)
    expansion: int = 4
    reduce: float = 1.0
    groups: int = 1
    stride_at: Literal["conv1x1", "conv3x3"] = "conv1x1"  # v1 (the paper) or v1.5
    stem: Literal["conv7x7", "conv3x3x3", "cifar"] = "conv7x7"
    maxpool: Literal["padded", "ceil"] = "padded"  # ceil: the released Caffe models
    projection: Literal["conv1x1", "conv3x3"] = "conv1x1"  # of the shortcuts that stride
    preactivation: bool = False
    dropout: float = 0.0
    zero_init: bool = False  # the last BN of each branch starts at 0; not in the paper
    se: SE | None = None


@dataclass(frozen=True)
class Augment:
    """What is done to training images beyond crop and flip; nothing by default, as in the paper. Numbers are limits of
    uniform draws.
    """

    rotate: float = 0.0  # degrees either way; the released models: 10
    pixel_jitter: float = 0.0  # levels of 255 added to each channel, either way; the released models: 20
    color_jitter: tuple[float, float, float, float] = (
        0.0,
        0.0,
        0.0,
        0.0,
    )  # brightness, contrast, saturation, hue (turns), either way
    lighting: float = 0.0  # AlexNet's noise along the principal colours: standard deviation, there 0.1
    policy: Literal["none", "autoaugment", "randaugment", "trivialaugment"] = "none"  # folder only
    policy_ops: int = 2  # randaugment: operations an image
    policy_magnitude: int = 9  # randaugment: strength, 0..30
    erase: float = 0.0  # random erasing: probability
    cutout: int = 0  # side of an erased square in pixels
    mixup: float = 0.0  # alpha of the Beta distribution; with cutmix as well, each image gets one of the two
    cutmix: float = 0.0  # likewise
    repeats: int = 1  # copies of an image in a batch, each augmented its own way
    balance: bool = False  # classes take turns, however many images they have
    start_crop: int | None = None  # folder: side in the first epoch, growing to data.crop ...
    grow_epochs: float = 0.0  # ... over so many epochs


@dataclass(frozen=True)
class Data:
    """The data set and what is done to its pixels. `folder` is any set in ImageNet layout: train/CLASS/*.JPEG,
    val/CLASS/*.JPEG.
    """

    set: Literal["folder", "cifar10", "cifar100", "synthetic"] = "folder"
    classes: int = 1000
    crop: int = 224  # what the net sees
    resize: int = 256  # folder, validation: shorter side before the centre crop
    area: tuple[float, float] = (0.08, 1.0)  # folder, training: of the random crop, as a share of the image
    aspect: tuple[float, float] = (0.75, 4 / 3)
    pad: int = 0  # cifar, training: zeros on each side before the random crop
    flip: bool = True  # training: horizontal, with probability one half
    augment: Augment = field(default_factory=Augment)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # of pixels in 0..1
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    train_images: int = 1_281_167  # synthetic only
    val_images: int = 50_000  # synthetic only


@dataclass(frozen=True)
class Optim:
    """SGD as the paper has it (section 5.1)."""

    lr: float = 0.6  # for the global batch, as written: never scaled behind your back
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    decay_norm_and_bias: bool = True  # False: normalisation layers and biases are left out, by module type
    label_smoothing: float = 0.0


@dataclass(frozen=True)
class Schedule:
    """Learning rate over fractional epochs: see senet.train.schedule."""

    shape: Literal["step", "cosine"] = "step"
    milestones: tuple[float, ...] = (30.0, 60.0, 90.0)  # step: epochs
    gamma: float = 0.1  # step: the factor at each
    warmup: Literal["none", "linear", "constant"] = "none"
    warmup_epochs: float = 0.0
    warmup_lr: float = 0.0  # linear: where it starts; constant: where it stays


@dataclass(frozen=True)
class Config:
    net: Net = field(default_factory=Net)
    data: Data = field(default_factory=Data)
    optim: Optim = field(default_factory=Optim)
    schedule: Schedule = field(default_factory=Schedule)
    batch: int = 1024  # global, over all ranks
    epochs: int = 100
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compress: Literal["none", "bf16"] = "none"  # gradients on their way between ranks; one rank alone sends none
    seed: int = 0


# -------------------------------------------------------------------------------------------------------------- reading


def load(name: str | Path, overrides: Iterable[str] = ()) -> Config:
    """The config in `FILE.yaml` or `FILE.yaml:VARIANT`, with `key=value` overrides typed like the file.

    Raises UsageError naming file, key, value and the nearest right one.
    """
    tree = files.read(str(name))
    for override in overrides:
        files.override(tree, override)
    config = from_dict(tree, str(name))
    check(config)
    return config


def variants(path: str | Path) -> list[str]:
    """The `FILE:NAME` of every variant in a file, in its order; the file itself when it has none."""
    names = (files.read_file(Path(path)).get("variants")) or {}
    return [f"{path}:{name}" for name in names] or [str(path)]


def from_dict(tree: Mapping[str, Any], where: str = "config") -> Config:
    """The inverse of `to_dict`: strict about keys and types, silent about settings that do nothing (see `check`)."""
    config = files.convert(tree, Config, "", where)
    assert isinstance(config, Config)
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """Plain mappings, lists and scalars, ready for YAML, JSON or a checkpoint."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(v) for key, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, tuple | list) else value

    return typing.cast(dict[str, Any], plain(dataclasses.asdict(config)))


def difference(old: Config, new: Config) -> list[str]:
    """`key: old -> new` for every setting in which two configs differ."""

    def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in tree.items():
            out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        return out

    a, b = flat(to_dict(old)), flat(to_dict(new))
    return [f"{key}: {a.get(key)} -> {b.get(key)}" for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)]


# ------------------------------------------------------------------------------------------------------------- checking


def check(config: Config) -> None:
    """Refuse values out of range and settings that would have no effect. Raises UsageError naming the key."""
    _check_ranges(config)
    _check_effect(config)


def _check_ranges(config: Config) -> None:
    net, data, schedule = config.net, config.data, config.schedule

    def need(ok: bool, key: str, remedy: str) -> None:
        if not ok:
            raise UsageError(f"{key}: {_value(config, key)!r} is out of range: {remedy}")

    for key in (
        "batch",
        "data.classes",
        "data.crop",
        "data.train_images",
        "data.val_images",
        "net.groups",
        "net.expansion",
    ):
        need(_value(config, key) >= 1, key, "must be at least 1")
    for key in (
        "epochs",
        "data.pad",
        "optim.lr",
        "optim.weight_decay",
        "schedule.warmup_epochs",
        "schedule.warmup_lr",
        "schedule.gamma",
    ):
        need(_value(config, key) >= 0, key, "must not be negative")
    for key in ("net.dropout", "optim.momentum", "optim.label_smoothing"):
        need(0 <= _value(config, key) < 1, key, "must be in [0, 1)")
    need(0 <= config.seed < 2**32, "seed", "must be in 0..2^32-1")
    need(
        1 <= len(net.blocks) <= 4 and min(net.blocks) >= 1,
        "net.blocks",
        "one to four stages of at least one block each",
    )
    need(
        len(net.widths) == len(net.blocks),
        "net.widths",
        f"net.blocks has {len(net.blocks)} stages, give as many widths",
    )
    need(
        all(w >= 1 and w % net.groups == 0 for w in net.widths),
        "net.widths",
        f"each must be a multiple of net.groups ({net.groups})",
    )
    narrow = [w * net.reduce for w in net.widths]
    need(all(w >= 1 and w == int(w) for w in narrow), "net.reduce", "must leave whole numbers of channels")
    if net.se is not None:
        last = 1 + len(net.blocks)
        stages = net.se.stages
        need(net.se.ratio >= 1, "net.se.ratio", "must be at least 1")
        need(
            stages is None or all(2 <= s <= last for s in stages), "net.se.stages", f"this net's stages are 2 to {last}"
        )
        need(stages != (), "net.se.stages", "an SE net without SE blocks; write net.se: null")
    need(data.resize >= data.crop or data.set != "folder", "data.resize", f"must be at least data.crop ({data.crop})")
    need(0 < data.area[0] <= data.area[1] <= 1, "data.area", "must be 0 < smallest <= largest <= 1")
    need(0 < data.aspect[0] <= data.aspect[1], "data.aspect", "must be 0 < smallest <= largest")
    need(len(data.mean) == 3, "data.mean", "three numbers, red green blue")
    need(len(data.std) == 3 and min(data.std) > 0, "data.std", "three positive numbers, red green blue")
    _check_augment(config, need)
    need(list(schedule.milestones) == sorted(schedule.milestones), "schedule.milestones", "must rise")
    need(
        schedule.shape != "cosine" or schedule.warmup_epochs < max(config.epochs, 1),
        "schedule.warmup_epochs",
        "must end before the run",
    )


def _check_augment(config: Config, need: Callable[[bool, str, str], None]) -> None:
    data, augment = config.data, config.data.augment
    for name in ("pixel_jitter", "lighting", "cutout", "grow_epochs"):
        need(getattr(augment, name) >= 0, f"data.augment.{name}", "must not be negative")
    for name in ("mixup", "cutmix", "erase"):
        need(0 <= getattr(augment, name) <= 1, f"data.augment.{name}", "must be in [0, 1]")
    need(0 <= augment.rotate <= 180, "data.augment.rotate", "must be in 0..180 degrees")
    jitter = augment.color_jitter
    need(
        min(jitter) >= 0 and max(jitter[:3]) <= 1 and jitter[3] <= 0.5,
        "data.augment.color_jitter",
        "must be in 0..1, hue in 0..0.5",
    )
    need(augment.policy_ops >= 1, "data.augment.policy_ops", "must be at least 1")
    need(0 <= augment.policy_magnitude <= 30, "data.augment.policy_magnitude", "must be in 0..30")
    repeats = augment.repeats
    need(
        repeats >= 1 and config.batch % repeats == 0,
        "data.augment.repeats",
        f"must be at least 1 and divide batch ({config.batch})",
    )
    start = augment.start_crop
    need(start is None or 1 <= start <= data.crop, "data.augment.start_crop", f"must be in 1..data.crop ({data.crop})")


def _value(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _check_effect(config: Config) -> None:
    net, data, schedule = config.net, config.data, config.schedule
    cifar = data.set in ("cifar10", "cifar100")
    resnet = (
        "blocks block widths expansion reduce groups stride_at stem maxpool projection "
        "preactivation dropout zero_init se"
    )
    rules = [
        (net.timm is not None, "net", resnet, "net.timm is set"),
        (net.block == "basic", "net", "reduce groups stride_at", "a basic block has two 3x3 convolutions"),
        (net.stem == "cifar", "net", "maxpool", "net.stem is cifar, which has no pooling"),
        (data.set != "folder", "data", "resize area aspect", f"data.set is {data.set}"),
        (data.set != "folder", "data.augment", "policy start_crop", f"data.set is {data.set}"),
        (
            data.augment.policy != "randaugment",
            "data.augment",
            "policy_ops policy_magnitude",
            "data.augment.policy is not randaugment",
        ),
        (data.augment.start_crop is None, "data.augment", "grow_epochs", "data.augment.start_crop is not set"),
        (not cifar, "data", "pad", f"data.set is {data.set}"),
        (data.set == "synthetic", "data", "flip", f"data.set is {data.set}"),
        (data.set != "synthetic", "data", "train_images val_images", f"data.set is {data.set}"),
        (schedule.shape != "step", "schedule", "milestones gamma", f"schedule.shape is {schedule.shape}"),
        (schedule.warmup == "none", "schedule", "warmup_epochs warmup_lr", "schedule.warmup is none"),
    ]
    default = Config()
    for applies, part, names, reason in rules:
        for key in (f"{part}.{name}" for name in names.split()) if applies else ():
            value, usual = _value(config, key), _value(default, key)
            if value != usual:
                raise UsageError(f"{key}: {value!r} would have no effect: {reason}; remove it (default {usual!r})")
    if net.timm is None and net.se is not None and net.se.place == "conv3x3" and net.block == "basic":
        raise UsageError(
            "net.se.place: 'conv3x3' would have no effect on basic blocks; use standard, pre, post or identity"
        )
    if net.zero_init and net.preactivation:
        raise UsageError(
            "net.zero_init: would silence each branch for good in a pre-activation net, whose last BN "
            "is not its end; remove it"
        )
    if data.augment.start_crop is not None and data.augment.grow_epochs == 0:
        raise UsageError("data.augment.start_crop: would have no effect: data.augment.grow_epochs is 0")
    if config.optim.nesterov and config.optim.momentum == 0:
        raise UsageError("optim.nesterov: true would have no effect: optim.momentum is 0")
    if schedule.warmup != "none" and schedule.warmup_epochs == 0:
        raise UsageError(f"schedule.warmup: {schedule.warmup!r} would have no effect: schedule.warmup_epochs is 0")
    if cifar and data.crop != 32:
        raise UsageError(f"data.crop: {data.crop} does not fit {data.set}, whose images are 32x32; set data.crop: 32")


# ------------------------------------------------------------------------------------------------------ sizes, batching


def crop_at(data: Data, epoch: int) -> int:
    """The side of training images in an epoch, with progressive resizing a multiple of 16."""
    start = data.augment.start_crop
    if start is None or epoch >= data.augment.grow_epochs:
        return data.crop
    grown = start + (data.crop - start) * epoch / data.augment.grow_epochs
    return max(start, int(grown) // 16 * 16)


def divide_batch(batch: int, world: int, largest: int | None = None) -> tuple[int, int]:
    """(images a rank sees at once, micro-batches it accumulates a step) of a global batch over `world` ranks.

    `largest` bounds the first where memory is short. Raises UsageError listing sizes that do divide.
    """
    if batch % world:
        low = batch // world * world
        near = ", ".join(str(size) for size in (low, low + world) if size)
        raise UsageError(
            f"batch: {batch} does not divide over {world} ranks; use batch={near} or {_divisors(batch)} ranks"
        )
    per_rank = batch // world
    largest = largest or per_rank
    if largest < 1:
        raise UsageError(f"--largest-batch {largest}: must be at least 1")
    micro_batch = max(d for d in range(1, min(per_rank, largest) + 1) if per_rank % d == 0)
    return micro_batch, per_rank // micro_batch


def _divisors(number: int) -> str:
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    return ", ".join(map(str, divisors[:12])) + (", ..." if len(divisors) > 12 else "")
