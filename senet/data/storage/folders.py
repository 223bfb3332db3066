"""Image folders: ROOT/train/CLASS/*.JPEG and ROOT/val/CLASS/*.JPEG, also in sub-folders of a class."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from senet.data.philox import Ints
from senet.data.storage.index import Format, Index, Names, order, read_classes, split_folder
from senet.errors import UsageError

ENDINGS = (".jpeg", ".jpg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
LAYOUT = "expected DIR/train/CLASS/*.JPEG and DIR/val/CLASS/*.JPEG, or shards DIR/train/*.tar and DIR/val/*.tar"
log = logging.getLogger(__name__)


class Folders(Format):
    """A file for each image."""

    @classmethod
    def holds(cls, root: Path, split: str) -> bool:
        base = split_folder(root, split)
        return base.is_dir() and bool(_folders(base))

    @classmethod
    def scan(cls, root: Path, split: str) -> Index:
        """List ROOT/SPLIT/CLASS/**. Raises UsageError for an empty class."""
        base = split_folder(root, split)
        classes = class_folders(root, base, warn=True)
        names: list[str] = []
        labels: list[int] = []
        times: dict[str, int] = {}
        for label, name in enumerate(classes):
            found = sorted(images_below(base, times, name), key=order)
            if not found:
                raise UsageError(
                    f"{base / name}: an empty class folder: no {', '.join(ENDINGS)} in it; add images or remove it"
                )
            names += found
            labels += [label] * len(found)
        storage = cls(base, Names.of(names), {"classes": classes, "times": times})
        return Index(storage, np.array(labels, np.int64), tuple(classes))

    @classmethod
    def unchanged(cls, root: Path, split: str, stamp: Mapping[str, Any]) -> bool:
        try:
            return stamp_of(root, split_folder(root, split), stamp["times"]) == stamp
        except FileNotFoundError:
            return False

    def read(self, image: int) -> bytes:
        with open(f"{self.root}/{self.names[image]}", "rb", buffering=0) as file:
            return file.readall()

    def file(self, image: int) -> Path:
        return self.root / self.names[image]

    def sizes(self) -> Ints:
        return np.array([os.stat(f"{self.root}/{name}").st_size for name in self.names], np.int64)


def stamp_of(root: Path, base: Path, folders: Iterable[str]) -> dict[str, Any]:
    """Return the classes by label, and when something was last added to or removed from `folders`, in nanoseconds."""
    return {"classes": class_folders(root, base), "times": {name: _time(base / name) for name in folders}}


def class_folders(root: Path, base: Path, warn: bool = False) -> list[str]:
    """Return the class folders in `base`, in order of label: that of ROOT/classes.txt if it lists them, otherwise of
    their names.
    """
    names, listed = _folders(base), list(read_classes(root))
    if sorted(listed) == names:
        return listed
    if not warn:
        return names
    if listed:
        log.warning("%s: classes.txt lists other classes than %s has; it is not used", root, base)
    with os.scandir(base) as entries:
        hidden = sorted(entry.name for entry in entries if entry.is_dir() and entry.name.startswith("."))
    if hidden:
        log.warning("%s: hidden folders are no classes and are ignored: %s", base, ", ".join(hidden))
    if all(name.isdecimal() for name in names) and sorted(names, key=int) != names:
        log.warning(
            "%s: its class folders are numbers, and labels follow them as text (%s ...), as in torchvision; "
            "for the order of numbers, which timm uses: ls %s | sort -n > %s",
            base, ", ".join(names[:3]), base, root / "classes.txt",
        )  # fmt: skip
    return names


def _folders(base: Path) -> list[str]:
    with os.scandir(base) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _time(folder: Path) -> int:
    return folder.stat().st_mtime_ns


def images_below(base: Path, times: dict[str, int], folder: str = "") -> Iterator[str]:
    """Yield the images in a folder of `base` and its sub-folders, hidden ones aside, by their paths below `base`, and
    enter the folders in `times`.
    """
    times[folder] = _time(base / folder)  # first: what is added in the meantime must not go unnoticed
    with os.scandir(base / folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path, is_image = os.path.join(folder, entry.name), entry.name.lower().endswith(ENDINGS)
            # Whether a link is a folder takes a question to the file system: none for what is called an image.
            if entry.is_dir(follow_symlinks=not is_image):
                yield from images_below(base, times, path)
            elif is_image:
                yield path
