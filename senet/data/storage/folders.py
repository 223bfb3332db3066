"""Image folders: ROOT/train/CLASS/*.JPEG and ROOT/val/CLASS/*.JPEG, also in sub-folders of a class."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from senet.data.philox import Ints
from senet.data.storage.index import Index, Names, Storage, order
from senet.errors import UsageError

ENDINGS = (".jpeg", ".jpg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
LAYOUT = "expected DIR/train/CLASS/*.JPEG and DIR/val/CLASS/*.JPEG, or shards DIR/train/*.tar and DIR/val/*.tar"
log = logging.getLogger(__name__)


class Folders(Storage):
    """A file for each image; the stamp has the times of all folders."""

    @classmethod
    def holds(cls, root: Path, split: str) -> bool:
        return (root / split).is_dir() and bool(class_folders(root / split))

    @classmethod
    def scan(cls, root: Path, split: str) -> Index:
        """List ROOT/SPLIT/CLASS/**. Raises UsageError for an empty class, or other classes than in the other split."""
        base = root / split
        classes = class_folders(base)
        if hidden := [name for name in _folders(base) if name.startswith(".")]:
            log.warning("%s: hidden folders are no classes and are ignored: %s", base, ", ".join(hidden))
        names: list[str] = []
        labels: list[int] = []
        stamp: dict[str, int] = {}
        for label, name in enumerate(classes):
            found = sorted(_walk(base, name, stamp), key=order)
            if not found:
                raise UsageError(
                    f"{base / name}: an empty class folder: no {', '.join(ENDINGS)} in it; add images or remove it"
                )
            names += found
            labels += [label] * len(found)
        other = root / ("val" if split == "train" else "train")
        if other.is_dir() and (differ := sorted(set(class_folders(other)) ^ set(classes))):
            raise UsageError(
                f"{root}: train/ and val/ have other classes: "
                f"{', '.join(differ[:5])}{' ...' if len(differ) > 5 else ''}; make them alike"
            )
        return Index(cls(base, Names.of(names), stamp), np.array(labels, np.int64), classes)

    @classmethod
    def unchanged(cls, root: Path, split: str, stamp: Mapping[str, Any]) -> bool:
        try:
            return times(root / split, {*class_folders(root / split), *stamp}) == stamp
        except FileNotFoundError:
            return False

    def read(self, image: int) -> bytes:
        with open(f"{self.root}/{self.names[image]}", "rb", buffering=0) as file:
            return file.readall()

    def file(self, image: int) -> Path:
        return self.root / self.names[image]

    def sizes(self) -> Ints:
        return np.array([os.stat(f"{self.root}/{name}").st_size for name in self.names], np.int64)


def class_folders(base: Path) -> tuple[str, ...]:
    """Return the names of the class folders in `base`, in order of label. Hidden ones are no classes."""
    return tuple(name for name in _folders(base) if not name.startswith("."))


def times(base: Path, folders: Iterable[str]) -> dict[str, int]:
    """Return when something was last added to or removed from each of the `folders` below `base`, in nanoseconds."""
    return {name: (base / name).stat().st_mtime_ns for name in folders}


def _folders(base: Path) -> list[str]:
    with os.scandir(base) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir())


def _walk(base: Path, folder: str, stamp: dict[str, int]) -> Iterable[str]:
    """Yield the images in a folder and its sub-folders, hidden ones aside, and enter their times in `stamp`."""
    stamp.update(times(base, [folder]))  # first: what is added in the meantime must not go unnoticed
    with os.scandir(base / folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            # Whether a link is a folder takes a question to the file system: none for what is called an image.
            if entry.is_dir(follow_symlinks=not entry.name.lower().endswith(ENDINGS)):
                yield from _walk(base, f"{folder}/{entry.name}", stamp)
            elif entry.name.lower().endswith(ENDINGS):
                yield f"{folder}/{entry.name}"
