"""Trained nets by what a person calls them: a checkpoint, a run folder, or a name of timm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from senet.config import Config, Folder, Timm, from_dict
from senet.errors import UsageError
from senet.execution.execution import Execution
from senet.models import build
from senet.models.timm import released
from senet.run import checkpoint


def load(what: str, weights: Path | None = None) -> tuple[Config, nn.Module, dict[str, Any] | None, Execution]:
    """Return the config of a checkpoint, a run folder or `timm:NAME`, its net on the CPU, how its validation pixels are
    made (None for timm), and the layout that it was computed in: compilation takes longer than an evaluation.

    Raises UsageError if there is no such thing or it is not valid.
    """
    if what.startswith("timm:"):
        name = what.removeprefix("timm:")
        net, facts = released(name, weights)
        return Config(net=Timm(name), data=Folder(**facts)), net, None, Execution()
    if weights is not None:
        raise UsageError("--weights goes with timm:NAME; a checkpoint brings its own")
    path = checkpoint.locate(Path(what))
    try:
        payload = checkpoint.read(path)
    except checkpoint.Invalid as error:
        raise UsageError(f"{path}: not usable: {error}") from None
    config = from_dict(payload.config, str(path))
    net = build(config.net, config.data.classes)
    net.load_state_dict(payload.net)
    return config, net, payload.pixels, Execution(layout=payload.execution["layout"])
