"""Validation: every image once over all ranks, whatever their number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from senet.config import Config, Data
from senet.data.loader import ValLoader
from senet.distributed import World
from senet.errors import RunError
from senet.train.meter import Meter
from senet.train.trainer import precision, set_tf32


@dataclass(frozen=True)
class View:
    """How validation images are shown to a net: once, as the loader cuts them out, unless a view says otherwise."""

    logits: Callable[[nn.Module, Tensor], Tensor] = lambda net, images: net(images)  # [b, 3, H, W] -> [b, classes]
    data: Callable[[Data], Data] = lambda data: data  # changes what the loader cuts out: more, for several crops


VIEWS = {"centre": View()}


@torch.inference_mode()
def evaluate(
    net: nn.Module,
    loader: ValLoader,
    config: Config,
    world: World,
    stop: Callable[[], bool] = lambda: False,
    view: View = VIEWS["centre"],
) -> dict[str, float]:
    """Return `images` counted, `loss` (without label smoothing), `top1_error` and `top5_error` in percent.

    All ranks call it and get the same. `net` is the bare module, left in evaluation mode: ranks have unequal numbers of
    batches, so nothing in here may be a collective but the one sum at the end. `stop`, asked after each batch, ends
    this rank's part early. Raises RunError if not one image could be decoded.
    """
    net.eval()
    set_tf32(config)
    meter = Meter(world.device)
    size = 0
    for images, labels, *_ in loader.batches():
        size = max(size, len(images))
        # The last batch is smaller: filled up, it needs no code, and no choice of algorithms, of its own.
        full = images if len(images) == size else F.pad(images, (0, 0, 0, 0, 0, 0, 0, size - len(images)))
        with precision(config, world.device):
            logits = view.logits(net, full)[: len(images)].float()
        meter.add(F.cross_entropy(logits, labels, reduction="none"), logits, labels)
        if stop():
            break
    errors = meter.read(world.all_reduce_sum(meter.sums))
    if not errors["images"] and not stop():
        raise RunError("not one validation image could be decoded; run launch.prepare audit on the data")
    return errors
