"""One pass of a trained net over images: what evaluation, prediction and reports have in common."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from senet.config import Config
from senet.data.imagenet import comparable, named
from senet.data.loader import Batch, ValLoader
from senet.data.source import Source, files_loader, list_images, val_loader
from senet.distributed import World
from senet.execution.execution import prepare
from senet.run.changes import check_pixels
from senet.run.load import Trained
from senet.track.terminal import bar
from senet.train.evaluate import Pass, View, evaluate
from senet.train.trainer import DTYPES

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Look:
    """What a net says of images."""

    what: str  # the net
    view: View
    config: Config
    errors: dict[str, float]  # over all ranks
    kept: Pass  # of this rank's images
    folders: tuple[str, ...]  # the classes by label, as the data set calls them; () if nobody knows
    name: Callable[[int], str]  # of an image

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes by label, as people call them; otherwise their numbers."""
        return named(self.folders, self.config.data.classes)


def look(trained: Trained, source: Source, world: World, view: View | None = None) -> Look:
    """Show the validation images of `source` to a net, in a view. All ranks call it. Raises UsageError."""
    config = trained.config
    shown = (view or View()).of(config.data)
    list_images(config.data, source, world.all_gather_object, ["val"])
    loader = val_loader(shown.data(config.data), source, world.rank, world.size, world.device, DTYPES[config.precision])
    if trained.pixels is not None:
        asked = {"crop", "resize"} if view else set()
        check_pixels({key: value for key, value in trained.pixels.items() if key not in asked}, loader.description)
    kept = Pass()
    errors = one_pass(trained, loader, world, shown, kept.keep)
    return Look(trained.origin, shown, config, errors, kept, loader.classes or trained.classes, loader.name)


def look_at_files(
    trained: Trained,
    files: Sequence[Path],
    source: Source,
    world: World,
    each: Callable[[Batch], object] = lambda batch: None,
) -> Look:
    """Show image files to a net, and `each` of the batches that it sees; pixels are made as in validation.

    A file's label is the class that its folder is called after, otherwise -1. Raises UsageError, and RunError if not
    one file can be decoded.
    """
    config, view = trained.config, View().of(trained.config.data)
    known = {comparable(name): label for label, name in enumerate(trained.classes)}
    labels = np.array([known.get(comparable(file.absolute().parent.name), -1) for file in files], np.int64)
    loader = files_loader(config.data, source, files, labels, world.device, DTYPES[config.precision])
    kept = Pass()

    def keep(batch: Batch, logits: Tensor) -> None:
        kept.keep(batch, logits)
        each(batch)

    errors = one_pass(trained, loader, world, view, keep)
    return Look(trained.origin, view, config, errors, kept, trained.classes, loader.name)


def one_pass(
    trained: Trained,
    loader: ValLoader,
    world: World,
    view: View,
    keep: Callable[[Batch, Tensor], object] = lambda batch, logits: None,
) -> dict[str, float]:
    """Show a loader's images to a net, and close it; `keep` is given batches and logits. Return errors."""
    loader.memory_format = trained.execution.memory_format
    with bar(str(view), loader.images, "image", main=world.is_main) as shown:

        def after_batch(batch: Batch, logits: Tensor) -> None:
            keep(batch, logits)
            shown.update(min(len(logits) * world.size, loader.images - shown.n))  # the other ranks are about as far

        try:
            net = prepare(trained.net.to(world.device), trained.execution)
            return evaluate(net, loader, trained.config, world, view=view, keep=after_batch)
        finally:
            loader.close()
            for path, reason in loader.bad.items():
                log.warning("left out: %s: %s", path, reason)
