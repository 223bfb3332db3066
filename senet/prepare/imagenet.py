"""ImageNet (ILSVRC2012) from the archives as published: into folders of classes, or straight into shards.

The archives are not unpacked first: the tars within the training tar are listed where they lie, and images read from
there.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from senet.data.imagenet import classes
from senet.data.storage.index import Index, Names, Storage, order, read_classes
from senet.data.storage.tars import Tars, stamp_of
from senet.errors import UsageError
from senet.prepare import archive, wnids
from senet.prepare.archive import Member
from senet.prepare.encoding import Encoding
from senet.prepare.folders import write_folders
from senet.prepare.plan import is_complete, record
from senet.prepare.pool import each
from senet.prepare.shards import Packing, write_classes, write_shards

IMAGES = {"train": 1_281_167, "val": 50_000}
LARGEST_IMAGE = 64 << 20  # bytes; the largest of the real ones has 16 MB
LARGEST_CLASS = 4 << 30
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sources:
    """Either tar alone will do; validation labels come from the devkit (.tar.gz or folder) or from a list."""

    train: Path | None = None
    val: Path | None = None
    devkit: Path | None = None
    labels: Path | None = None

    def __post_init__(self) -> None:
        if self.train is None and self.val is None:
            raise UsageError("nothing to prepare: give --train-tar, --val-tar or both")
        if self.val is not None and (self.devkit is None) == (self.labels is None):
            raise UsageError("--val-tar has no labels in it: give either --devkit or --val-labels")
        if self.val is None and (self.devkit or self.labels):
            raise UsageError("--devkit and --val-labels are of no use without --val-tar")
        for path in (self.train, self.val, self.devkit, self.labels):
            if path is not None and not path.exists():
                raise UsageError(f"{path}: no such file")

    @property
    def tars(self) -> dict[str, Path]:
        return {split: path for split, path in (("train", self.train), ("val", self.val)) if path is not None}

    def val_wnids(self) -> dict[str, str]:
        """Return the wnid of each validation image by its name without ending."""
        if self.labels is not None:
            return wnids.listed_labels(self.labels)
        return {} if self.devkit is None else wnids.devkit_labels(self.devkit)


def prepare(
    folder: Path, sources: Sources, output: Packing | Encoding, partial: bool = False, processes: int | None = None
) -> list[str]:
    """Write `folder`/train/WNID/*.JPEG and val likewise, or shards for a Packing; returns what was done, a sentence for
    each split.

    What is there is kept, and an interrupted call completed by the next. Raises UsageError for archives that are not
    the published ones by what they hold (a warning if `partial`), or not safe, for labels that do not fit, and if
    something else is in `folder`.
    """
    val_wnids = sources.val_wnids()
    plans = {split: _plan(split, path, output, val_wnids) for split, path in sources.tars.items()}
    pending = [split for split in plans if not is_complete(folder, split, plans[split])]
    notes = [f"{folder / split}: all images are there already" for split in plans if split not in pending]
    if not pending:
        return notes
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lists = {
            split: _survey(path, _list_file(folder, split), split, processes) for split, path in sources.tars.items()
        }
        for split, index in _labelled(folder, lists, sources.tars, val_wnids, partial).items():
            if split not in pending:
                continue
            plan = plans[split] | {"fingerprint": index.fingerprint}
            is_complete(folder, split, plan)  # refuses one of other images
            record(folder, split, plan)
            write_classes(folder, index.classes)
            if isinstance(output, Packing):
                write_shards(index, folder, split, output, processes)
            else:
                write_folders(index, folder, split, output, processes)
            record(folder, split, plan, complete=True)
            notes.append(f"{folder / split}: {len(index)} images of {len(index.classes)} classes")
        for split in lists:
            _list_file(folder, split).unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written: {error.strerror or error}") from None
    return notes


def _plan(split: str, tar: Path, output: Packing | Encoding, val_wnids: Mapping[str, str]) -> dict[str, Any]:
    plan = {"tar_bytes": tar.stat().st_size} | (
        output.plan if isinstance(output, Packing) else {"form": "folders", **output.plan}
    )
    if split == "val":
        plan["labels"] = hashlib.sha256(json.dumps(val_wnids, sort_keys=True).encode()).hexdigest()[:16]
    return plan


def _list_file(folder: Path, split: str) -> Path:
    """What an archive holds, for the next call of an interrupted one."""
    return folder / f".{split}-tar.npz"


def _labelled(
    folder: Path, lists: Mapping[str, Storage], tars: Mapping[str, Path], val_wnids: Mapping[str, str], partial: bool
) -> dict[str, Index]:
    """Return the images of each tar with their labels, in order of label and name."""

    def doubt(problem: str) -> None:
        if not partial:
            raise UsageError(f"{problem}; fetch it again, or pass --partial to take what is there")
        log.warning("%s", problem)

    shown = {split: _wnids(images.names, split, tars[split], val_wnids) for split, images in lists.items()}
    for split, own in shown.items():
        if len(own) != IMAGES[split] or set(own) != set(classes()):
            doubt(
                f"{tars[split]}: {len(own):,} images of {len(set(own)):,} classes, not the {IMAGES[split]:,} "
                "of 1,000 of ILSVRC2012"
            )
        if split == "val" and len(val_wnids) != len(own):
            doubt(f"{tars[split]}: {len(own):,} images, but labels for {len(val_wnids):,}")
    before = read_classes(folder)
    common = set.intersection(*map(set, shown.values()), *([set(before)] if before else []))
    if not common or (before and common != set(before)):
        raise UsageError(
            f"{folder}: the archives lack classes that are to be there; prepare train and val in one run, in another "
            "folder"
        )
    for split, own in shown.items():
        if surplus := sorted(set(own) - common):
            doubt(
                f"{tars[split]}: {len(surplus):,} classes that the rest lacks are left out: "
                f"{', '.join(surplus[:3])} ..."
            )
    return {split: _ordered(images, shown[split], tuple(sorted(common))) for split, images in lists.items()}


def _wnids(names: Names, split: str, tar: Path, val_wnids: Mapping[str, str]) -> list[str]:
    if split == "train":
        return [name.partition("_")[0] for name in names]
    try:
        return [val_wnids[name.partition(".")[0]] for name in names]
    except KeyError as error:
        raise UsageError(
            f"{tar}: {error.args[0]} has no label in --devkit or --val-labels; give the one that belongs to it"
        ) from None


def _ordered(images: Storage, shown: list[str], names: tuple[str, ...]) -> Index:
    labels = {name: label for label, name in enumerate(names)}
    rows = [
        (labels[wnid], f"{wnid}/{name}", image)
        for image, (wnid, name) in enumerate(zip(shown, images.names, strict=True))
        if wnid in labels
    ]
    rows.sort(key=lambda row: (row[0], order(row[1])))
    chosen = images.subset(np.array([image for _, _, image in rows], np.int64))
    storage = replace(chosen, names=Names.of(name for _, name, _ in rows))
    return Index(storage, np.array([label for label, _, _ in rows], np.int64), names)


def _survey(tar: Path, saved: Path, split: str, processes: int | None) -> Storage:
    """Return what is where in a tar of images, from the list in `saved` if that is up to date."""
    stamp = stamp_of(tar.parent, [tar])
    if (known := Index.load(saved, Tars, lambda listed: listed == stamp)) is not None:
        return replace(known.storage, root=tar.parent)
    size = tar.stat().st_size
    if split == "train":
        inner = archive.members(tar, 0, size, r"n\d{8}\.tar", LARGEST_CLASS)
        jobs = [
            (tar, start, size, rf"{name.partition('.')[0]}_\d+\.JPEG", LARGEST_IMAGE) for name, start, size in inner
        ]
    else:
        jobs = [(tar, 0, size, r"ILSVRC2012_val_\d{8}\.JPEG", LARGEST_IMAGE)]
    workers = processes if len(jobs) > 1 else 1
    listed = each(_list, jobs, workers, f"listing {split}", len(jobs), lambda images: 1, "tar")
    images = sorted(image for part in listed for image in part)
    spans = np.array([(0, start, size) for _, start, size in images], np.int64).reshape(-1, 3)
    storage = Tars(tar.parent, Names.of(name for name, _, _ in images), stamp, {"spans": spans})
    Index(storage, np.zeros(len(images), np.int64), ()).save(saved)
    return storage


def _list(job: tuple[Path, int, int, str, int]) -> list[Member]:
    return archive.members(*job)
