"""Trained nets by what a person calls them: a checkpoint, a run folder, or a name of timm."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from senet.config import Config, Folder, Timm, from_dict
from senet.data import imagenet
from senet.errors import UsageError
from senet.execution.execution import Execution
from senet.models import build
from senet.models.timm import released
from senet.run import checkpoint

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """A net and what it takes to use it."""

    net: nn.Module  # on the CPU
    config: Config  # `data` is how the net wants its images; what its source does not tell has its defaults
    origin: str  # what it is, for people: "timm:seresnet50", "runs/se50/checkpoints/best.pt, epoch 90"
    classes: tuple[str, ...] = ()  # their names in order of label (`senet.data.imagenet.readable`); () if unknown
    pixels: Mapping[str, Any] | None = None  # how the validation pixels of its training were made; None if unknown
    execution: Execution = field(default_factory=Execution)  # the layout that it was trained in; never compiled


def load(what: str, weights: Path | None = None, verify: bool = True) -> Trained:
    """Return the net of a checkpoint, of a run folder (its best checkpoint) or of `timm:NAME`, whose weights are
    downloaded or those of the file `weights`.

    A checkpoint that has no checksum, or does not fit it, is refused unless told not to `verify`. Raises UsageError if
    there is no such thing or it is not valid.
    """
    if what.startswith("timm:"):
        name = what.removeprefix("timm:")
        net, facts = released(name, weights)
        config = Config(net=Timm(name), data=Folder(**facts))
        return Trained(net, config, what, _imagenet(config.data.classes))
    if weights is not None:
        raise UsageError("--weights goes with timm:NAME; a checkpoint brings its own")
    path = checkpoint.locate(Path(what))
    try:
        payload = checkpoint.read(path, verify)
    except checkpoint.Unverified as error:
        raise UsageError(f"{path}: not usable: {error}; launch.evaluate --unverified takes it as it is") from None
    except checkpoint.Invalid as error:
        raise UsageError(f"{path}: not usable: {error}") from None
    if not verify:
        log.warning("%s: its checksum is not verified: whether it is as it was written is unknown", path)
    config = from_dict(payload.config, str(path))
    net = build(config.net, config.data.classes)
    net.load_state_dict(payload.net)
    execution = Execution(layout=payload.execution["layout"])  # compilation takes longer than an evaluation
    classes = tuple(payload.pixels.get("classes", ()))
    return Trained(net, config, f"{path}, epoch {payload.progress.epoch}", classes, payload.pixels, execution)


def _imagenet(classes: int) -> tuple[str, ...]:
    """Return the classes of a released net, if they are as many as ImageNet's: all libraries have the same order."""
    names = tuple(imagenet.classes())
    return names if classes == len(names) else ()
