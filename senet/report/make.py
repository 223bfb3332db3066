"""Puts a report together: reads runs, lets their nets look at the validation images again, draws and writes."""

import dataclasses
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from senet.config import Data
from senet.data.philox import Ints
from senet.data.sheet import pictures
from senet.data.source import Source, val_loader
from senet.distributed import World
from senet.errors import RunError, UsageError
from senet.report import figures
from senet.report.facts import RunFacts
from senet.report.page import Seen, Wrong, html
from senet.report.paper import quoted
from senet.run.load import load
from senet.run.look import Look, look
from senet.system.files import replace, write_text
from senet.train.evaluate import fused
from senet.train.predictions import by_class, interval, pairs

WRONG, PAIRS = 24, 20  # most wrong images and most frequent confusions on a page
log = logging.getLogger(__name__)


def make(runs: Sequence[RunFacts], out: Path, source: Source | None, world: World) -> Path:
    """Write the report of `runs` into a folder, index.html and its pictures, and return the page's path.

    The best net of each run looks at its validation images again: those of `source`, of which a root that is None
    stands for the data of the run; a source that is None for none. Raises OSError.
    """
    out.mkdir(parents=True, exist_ok=True)  # first: what is wrong with it shows at once
    papers = [quoted(run.config) for run in runs]
    paper = papers[0] if len({each and each.config for each in papers}) == 1 else None
    charts = figures.curves(runs, paper)
    seen = [_see(run, source, world) for run in runs]
    matrices = {f"confusion-{number}": found.confusion for number, found in enumerate(seen, 1) if found.confusion}
    for name, picture in (charts | matrices).items():
        replace(out / f"{name}.png", partial(Path.write_bytes, data=picture))
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    write_text(out / "index.html", html(title, runs, paper, charts, seen))
    return out / "index.html"


def _see(run: RunFacts, source: Source | None, world: World) -> Seen:
    """Let a run's best net look at the validation images."""
    if source is None:
        return Seen("--no-images")
    if run.folder.path.is_file():
        return Seen("a packed log has no weights; give the run's folder")
    if source.root is None:
        if run.status and run.status.state == "running":
            return Seen("the run goes on; --data DIR looks at its best checkpoint so far")
        if run.data is None and run.config.data.set != "synthetic":
            return Seen("which data it was trained on is not known; give --data DIR")
        source = dataclasses.replace(source, root=run.data, checksum=run.checksum)
    try:
        return _wrongs(look(load(str(run.folder)), source, world), source, world)
    except (UsageError, RunError) as error:
        log.warning("%s: errors are not shown: %s", run.folder, error)
        return Seen(str(error))


def _wrongs(seen: Look, source: Source, world: World) -> Seen:
    errors, predictions = fused([seen.kept], world)
    count, names = seen.config.data.classes, seen.classes
    low, high = interval(errors["top1_error"], int(errors["images"]))
    worst = predictions.worst(WRONG)
    shown = _pictures(seen.config.data, source, worst.images)
    wrong = [
        Wrong(picture, Path(row["image"]).name, row["label"], row["of_label"], row["top"][:2])
        for picture, row in zip(shown, worst.rows(seen.name, names), strict=True)
    ]
    what = (
        f"The best checkpoint on {errors['images']:,} validation images of {source.root or 'made-up data'}: top-1 "
        f"error {errors['top1_error']:.2f} % (95 %: {low:.2f} to {high:.2f}), top-5 {errors['top5_error']:.2f} %."
    )
    return Seen(
        what=what,
        confusion=figures.confusion(predictions.confusion(count), names) if count <= figures.MATRIX else b"",
        classes=names,
        rows=by_class(predictions, count),
        pairs=pairs(predictions, count)[:PAIRS] if count > figures.NUMBERED else (),
        wrong=wrong,
    )


def _pictures(data: Data, source: Source, images: Ints) -> list[Image.Image]:
    """Return validation images as the net sees them, by their numbers."""
    loader = val_loader(data, source, 0, 1, torch.device("cpu"), only=images)
    try:
        return [picture for batch in loader.batches() for picture in pictures(batch.images, data)]
    finally:
        loader.close()
