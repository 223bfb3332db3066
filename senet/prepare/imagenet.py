"""ImageNet (ILSVRC2012) from the archives as published, or from what was unpacked: into class folders or shards."""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from senet.data.imagenet import classes
from senet.data.storage.find import listing
from senet.data.storage.index import Index, Names, Storage, read_classes
from senet.errors import UsageError
from senet.prepare import published, wnids
from senet.prepare.convert import Output, plan_of, write
from senet.prepare.plan import is_complete

IMAGES = {"train": 1_281_167, "val": 50_000}
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sources:
    """What to prepare. Either split alone will do, each a tar or a folder; validation labels come from the devkit
    (.tar.gz or folder) or from a list, unless its images lie in class folders. Kaggle's download has all in one, a zip
    or a folder.
    """

    train: Path | None = None
    val: Path | None = None
    devkit: Path | None = None
    labels: Path | None = None
    kaggle: Path | None = None

    def __post_init__(self) -> None:
        for path in (self.train, self.val, self.devkit, self.labels, self.kaggle):
            if path is not None and not path.exists():
                raise UsageError(f"{path}: no such file")
        if self.kaggle is not None and (self.train or self.val or self.devkit or self.labels):
            raise UsageError("--kaggle has images and labels: leave out --train, --val, --devkit and --val-labels")
        if self.train is None and self.val is None and self.kaggle is None:
            raise UsageError("nothing to prepare: give --train-tar, --val-tar or both, or --kaggle")
        flat = self.val is not None and (self.val.is_file() or not any(path.is_dir() for path in self.val.iterdir()))
        if flat and (self.devkit is None) == (self.labels is None):
            raise UsageError("--val-tar has no labels in it: give either --devkit or --val-labels")
        if not flat and (self.devkit or self.labels):
            raise UsageError("--devkit and --val-labels are of no use without --val-tar")

    @property
    def paths(self) -> dict[str, Path]:
        """Where each split is."""
        both = {"train": self.train or self.kaggle, "val": self.val or self.kaggle}
        return {split: path for split, path in both.items() if path is not None}

    def val_wnids(self) -> dict[str, str]:
        """Return the wnid of each validation image by its name without ending, as far as --devkit or a list say it."""
        if self.labels is not None:
            return wnids.listed_labels(self.labels)
        return {} if self.devkit is None else wnids.devkit_labels(self.devkit)


def prepare(
    folder: Path, sources: Sources, output: Output, partial: bool = False, processes: int | None = None
) -> list[str]:
    """Write `folder`/train/WNID/*.JPEG and val likewise, or shards; returns what was done, a sentence for each split.

    What is there is kept, and an interrupted call completed by the next. Raises UsageError for archives that are not
    the published ones by what they hold (a warning if `partial`), or not safe, for labels that do not fit, and if
    something else is in `folder`.
    """
    val_wnids = sources.val_wnids()
    facts = {split: _facts(split, path, val_wnids) for split, path in sources.paths.items()}
    plans = {split: plan_of(output, split) | facts[split] for split in facts}
    pending = [split for split in plans if not is_complete(folder, split, plans[split])]
    notes = [f"{folder / split}: all images are there already" for split in plans if split not in pending]
    if not pending:
        return notes
    saved = folder / ".train-tar.npz"  # what the tar holds, for the next call of an interrupted one
    try:
        folder.mkdir(parents=True, exist_ok=True)
        images = _find(sources, saved, val_wnids, processes)
        for split, index in _labelled(folder, images, sources.paths, val_wnids, partial).items():
            if split in pending:
                notes.append(write(index, folder, split, output, facts[split], processes))
        saved.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written: {error.strerror or error}") from None
    return notes


def _facts(split: str, path: Path, val_wnids: Mapping[str, str]) -> dict[str, Any]:
    """Return what tells the sources of a split apart before they are looked into."""
    facts: dict[str, Any] = {"tar_bytes": path.stat().st_size} if path.is_file() else {}
    if split == "val" and val_wnids:
        facts["labels"] = hashlib.sha256(json.dumps(val_wnids, sort_keys=True).encode()).hexdigest()[:16]
    return facts


def _find(sources: Sources, saved: Path, val_wnids: dict[str, str], processes: int | None) -> dict[str, Storage]:
    """Return the images of each split, and enter what Kaggle's zip tells in `val_wnids`."""
    if sources.kaggle is None:
        found = {} if sources.train is None else {"train": published.train_images(sources.train, saved, processes)}
        return found if sources.val is None else found | {"val": published.val_images(sources.val)}
    if sources.kaggle.is_file():
        found, listed = published.kaggle_images(sources.kaggle)
        val_wnids |= wnids.listed_labels(sources.kaggle, listed)
        return found
    found = {}
    for split in ("train", "val"):
        index = listing(sources.kaggle, split)
        names = (Path(name).name for name in index.storage.names)
        named = Names.of(f"{index.classes[label]}/{name}" for label, name in zip(index.labels, names, strict=True))
        found[split] = published.joined([index.storage], named)
    return found


def _labelled(
    folder: Path, images: Mapping[str, Storage], paths: Mapping[str, Path], val_wnids: Mapping[str, str], partial: bool
) -> dict[str, Index]:
    """Return the images of each split with their labels, in order of label and name."""

    def doubt(problem: str) -> None:
        if not partial:
            raise UsageError(f"{problem}; fetch it again, or pass --partial to take what is there")
        log.warning("%s", problem)

    shown = {split: _wnids(storage.names, paths[split], val_wnids) for split, storage in images.items()}
    known = classes()
    for split, own in shown.items():
        if len(own) != IMAGES[split] or set(own) != set(known):
            doubt(
                f"{paths[split]}: {len(own):,} images of {len(set(own)):,} classes, not the {IMAGES[split]:,} "
                "of 1,000 of ILSVRC2012"
            )
        if unknown := sorted(set(own) - set(known)):
            doubt(f"{paths[split]}: no classes of ILSVRC2012: {', '.join(unknown[:5])}{' ...' * (len(unknown) > 5)}")
        if split == "val" and val_wnids and len(val_wnids) != len(own):
            doubt(f"{paths[split]}: {len(own):,} images, but labels for {len(val_wnids):,}")
    before = read_classes(folder)
    common = set.intersection(*map(set, shown.values()), *([set(before)] if before else []))
    if not common or (before and common != set(before)):
        raise UsageError(f"{folder}: the archives lack classes of it; prepare train and val at once, in another folder")
    for split, own in shown.items():
        if surplus := sorted(set(own) - common):
            doubt(
                f"{paths[split]}: {len(surplus):,} classes that the rest lacks are left out: "
                f"{', '.join(surplus[:3])} ..."
            )
    return {split: _ordered(storage, shown[split], tuple(sorted(common))) for split, storage in images.items()}


def _wnids(names: Names, path: Path, val_wnids: Mapping[str, str]) -> list[str]:
    """Return what each image shows: the class in its name, otherwise what the labels say."""
    try:
        return [name.partition("/")[0] if "/" in name else val_wnids[name.partition(".")[0]] for name in names]
    except KeyError as name:
        raise UsageError(f"{path}: {name} has no label in --devkit or --val-labels; give the right one") from None


def _ordered(images: Storage, shown: list[str], names: tuple[str, ...]) -> Index:
    labels = {name: label for label, name in enumerate(names)}
    chosen = np.array([image for image, wnid in enumerate(shown) if wnid in labels], np.int64)
    paths = Names.of(f"{shown[image]}/{images.names[image].rpartition('/')[2]}" for image in chosen)
    storage = replace(images.subset(chosen), names=paths)
    return Index(storage, np.array([labels[shown[image]] for image in chosen], np.int64), names).sorted()
