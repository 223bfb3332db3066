"""Validation: every image once over all ranks, whatever their number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from senet.config import Config, Data, Net, from_dict
from senet.data.loader import ValLoader
from senet.errors import RunError, UsageError
from senet.models import build
from senet.models.zoo import released
from senet.train import checkpoint
from senet.train.loop import precision
from senet.train.meter import Meter
from senet.world import World


@torch.inference_mode()
def evaluate(
    net: nn.Module,
    loader: ValLoader,
    config: Config,
    world: World,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """`images` counted, `loss` (without label smoothing), `top1_error` and `top5_error` in percent, alike on all ranks.

    `net` is the bare module, left in evaluation mode: ranks have unequal numbers of batches, so nothing in here may be a collective
    but the one sum at the end. `stop`, asked after each batch, ends this rank's part early.
    """
    net.eval()
    meter = Meter(world.device)
    for images, labels, *_ in loader.batches():
        with precision(config, world.device):
            logits = net(images).float()
        meter.add(F.cross_entropy(logits, labels, reduction="none"), logits, labels)
        if stop():
            break
    errors = meter.read(world.sum(meter.sums))
    if not errors["images"] and not stop():
        raise RunError("not one validation image could be decoded; run launch.prepare audit on the data")
    return errors


def load(what: str, weights: Path | None = None) -> tuple[Config, nn.Module, dict[str, Any] | None]:
    """The config, the net (on the CPU) and how the pixels of its validation were made, of a checkpoint, a run folder or `timm:NAME`.

    Raises UsageError where there is no such thing or it is not valid.
    """
    if what.startswith("timm:"):
        name = what.removeprefix("timm:")
        net, facts = released(name, weights)
        return Config(net=Net(timm=name), data=Data(**facts)), net, None
    if weights is not None:
        raise UsageError("--weights goes with timm:NAME; a checkpoint brings its own")
    path = checkpoint.find(Path(what))
    try:
        payload = checkpoint.read(path)
    except checkpoint.Invalid as error:
        raise UsageError(f"{path}: not usable: {error}") from None
    config = from_dict(payload["config"], str(path))
    net = build(config.net, config.data.classes)
    net.load_state_dict(payload["net"])
    return config, net, payload["pixels"]
