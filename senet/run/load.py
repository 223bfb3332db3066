"""Trained nets by what a person calls them: a checkpoint, a run folder, a name of timm, a file of weights."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from senet import config
from senet.config import Config, Folder, Timm, from_dict
from senet.data import imagenet
from senet.errors import UsageError
from senet.execution.execution import Execution
from senet.models import build
from senet.models.timm import released
from senet.run import checkpoint
from senet.system.run_folder import facts_of
from senet.train.ema import averaged
from senet.weights import Weights, check, read, recognise
from senet.weights.files import EXPORTED, IsCheckpoint

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """A net and what it takes to use it."""

    net: nn.Module  # on the CPU
    config: Config  # `data` is how the net wants its images; what its source does not tell has its defaults
    origin: str  # what it is, for people: "timm:seresnet50", "runs/se50/checkpoints/best.pt, epoch 90"
    classes: tuple[str, ...] = ()  # their names in order of label (`senet.data.imagenet.readable`); () if unknown
    pixels: Mapping[str, Any] | None = None  # how the validation pixels of its training were made; None if unknown
    average: bool | None = None  # whether it is the average of the weights; None if there is nothing to choose from
    execution: Execution = field(default_factory=Execution)  # the layout that it was trained in; never compiled
    certain: bool = True  # whether all settings of the net are known, and none was guessed


def load(what: str, weights: Path | None = None, verify: bool = True, ema: bool | None = None) -> Trained:
    """Return the net of a checkpoint, of a run folder (its best checkpoint), of a file of weights from any library that
    `senet.weights` knows or a folder with one (of launch.export), or of `timm:NAME`, whose weights are downloaded or
    those of the file `weights`.

    A checkpoint that has no checksum, or does not fit it, is refused unless told not to `verify`. An average of the
    weights is taken if there is one, unless `ema` is False. Raises UsageError if there is no such thing, it is not
    valid, or it lacks the weights that `ema` asks for.
    """
    if what.startswith("timm:"):
        if ema:
            raise UsageError(f"{what}: holds no average of weights; leave --ema out")
        name = what.removeprefix("timm:")
        net, facts = released(name, weights)
        settings = Config(net=Timm(name), data=Folder(**facts))
        return Trained(net, settings, what, _imagenet(settings.data.classes))
    if weights is not None:
        raise UsageError("--weights goes with timm:NAME; everything else brings its own")
    exported = Path(what, EXPORTED)
    path = exported if exported.exists() else checkpoint.locate(Path(what))
    if not facts_of(path):
        with contextlib.suppress(IsCheckpoint):
            found = read(path, averaged=ema is not False)
            if ema and not found.averaged:
                raise UsageError(f"{path}: holds no average of weights; leave --ema out")
            if ema is False and found.averaged:
                raise UsageError(f"{path}: holds nothing but an average of weights; leave --raw out")
            return of_weights(found, str(path))
    return _of_checkpoint(path, verify, ema)


def of_weights(weights: Weights, origin: str) -> Trained:
    """Return the net of weights that were read; if they do not say how images are prepared, the usual way."""
    settings = weights.config or Config(net=weights.net, data=_data(weights))
    net = build(weights.net, weights.labels)
    net.load_state_dict(weights.state)
    title = weights.library.title if weights.library else "this project"
    classes = weights.classes or _imagenet(weights.labels)
    kind = "averaged weights" if weights.averaged else "weights"
    certain = weights.library is not None or weights.config is not None  # bare shapes do not tell where blocks stride
    return Trained(net, settings, f"{origin}, {kind} in the names of {title}", classes, certain=certain)


def native(trained: Trained) -> Trained:
    """Return the same net as one of this project, if it is one of timm. Raises UsageError if there is no such net."""
    if not isinstance(trained.config.net, Timm):
        return trained
    weights = recognise(trained.net.state_dict(), trained.origin)
    settings = replace(trained.config, net=weights.net)
    return replace(trained, net=of_weights(weights, "").net, config=settings)


def _of_checkpoint(path: Path, verify: bool, ema: bool | None) -> Trained:
    try:
        payload = checkpoint.read(path, verify)
    except checkpoint.Unverified as error:
        raise UsageError(f"{path}: not usable: {error}; launch.evaluate --unverified takes it as it is") from None
    except checkpoint.Invalid as error:
        raise UsageError(f"{path}: not usable: {error}") from None
    if not verify:
        log.warning("%s: its checksum is not verified: whether it is as it was written is unknown", path)
    settings = from_dict(payload.config, str(path))
    net = build(settings.net, settings.data.classes)
    average = averaged(payload.hooks)
    if ema and average is None:
        raise UsageError(f"{path}: holds no average of the weights: its run was without `ema`; leave --ema out")
    chosen = None if average is None else ema is not False
    state = average if average is not None and chosen else payload.net
    check(state, net.state_dict(), str(path))
    net.load_state_dict(state)
    execution = Execution(layout=payload.execution["layout"])  # compilation takes longer than an evaluation
    classes = tuple(payload.pixels.get("classes", ()))
    which = {None: "", True: ", average of the weights", False: ", without the average of the weights"}[chosen]
    origin = f"{path}, epoch {payload.progress.epoch}{which}"
    return Trained(net, settings, origin, classes, payload.pixels, chosen, execution)


def _data(weights: Weights) -> config.Data:
    """Return the data set that weights which say nothing of it were most likely trained on."""
    small = isinstance(weights.net, config.ResNet) and isinstance(weights.net.stem, config.CifarStem)
    if small and weights.labels in (10, 100):
        return config.Cifar10() if weights.labels == 10 else config.Cifar100()
    return Folder(classes=weights.labels)


def _imagenet(classes: int) -> tuple[str, ...]:
    """Return the classes of a released net, if they are as many as ImageNet's: all libraries have the same order."""
    names = tuple(imagenet.classes())
    return names if classes == len(names) else ()
