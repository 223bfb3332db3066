"""One pass of a trained net over a validation set: what evaluation, reports and exports have in common."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from senet.config import Config
from senet.data.imagenet import named
from senet.data.loader import Batch
from senet.data.source import Source, val_loader
from senet.distributed import World
from senet.execution.execution import prepare
from senet.run.changes import check_pixels
from senet.run.load import load
from senet.train.evaluate import Pass, View, evaluate
from senet.train.trainer import DTYPES

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Look:
    """What a net says of a validation set."""

    what: str  # the net
    view: View
    config: Config
    errors: dict[str, float]  # over all ranks
    kept: Pass  # of this rank's images
    folders: tuple[str, ...]  # the classes by label, as the data set calls them
    name: Callable[[int], str]  # of an image

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes by label, as people call them; their numbers if the data set does not tell."""
        return named(self.folders, self.config.data.classes)


def look(what: str, source: Source, world: World, view: View | None = None, weights: Path | None = None) -> Look:
    """Show the images of `source` to the net that `what` names (see `senet.run.load`), in a view. All ranks call it.

    A terminal shows a bar. Raises UsageError for what is wrong with either.
    """
    trained = load(what, weights)
    config, execution = trained.config, trained.execution
    shown = (view or View()).of(config.data)
    on_rank = (world.rank, world.size, world.device, DTYPES[config.precision])
    loader = val_loader(shown.data(config.data), source, *on_rank)
    loader.memory_format = execution.memory_format
    if trained.pixels is not None:
        asked = {"crop", "resize"} if view else set()
        check_pixels({key: value for key, value in trained.pixels.items() if key not in asked}, loader.description)
    kept = Pass()
    with tqdm(
        desc=str(shown) if view else "evaluation",
        total=loader.images,
        unit=" images",
        leave=False,
        dynamic_ncols=True,
        disable=None if world.is_main else True,
    ) as bar:

        def keep(batch: Batch, logits: Tensor) -> None:
            kept.keep(batch, logits)
            bar.update(min(len(logits) * world.size, loader.images - bar.n))  # the other ranks are about as far

        try:
            net = prepare(trained.net.to(world.device), execution)
            errors = evaluate(net, loader, config, world, view=shown, keep=keep)
        finally:
            loader.close()
    for path, reason in loader.bad.items():
        log.warning("not counted: %s: %s", path, reason)
    return Look(what, shown, config, errors, kept, loader.classes or trained.classes, loader.name)
