"""Image folders in ImageNet layout: ROOT/train/CLASS/*.JPEG and ROOT/val/CLASS/*.JPEG."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from senet.data.draws import Ints
from senet.errors import UsageError

ENDINGS = (".jpeg", ".jpg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Folder:
    """The files of one split, in order of class and name, and their labels: places in the sorted list of class names."""

    paths: list[str]
    labels: Ints
    classes: list[str]

    def __len__(self) -> int:
        return len(self.paths)


def scan(root: Path, split: str, classes: int) -> Folder:
    """List ROOT/SPLIT. Raises UsageError for a missing folder, an empty class or another number of classes than the config says."""
    layout = "expected DIR/train/CLASS/*.JPEG and DIR/val/CLASS/*.JPEG"
    if not root.is_dir():
        raise UsageError(f"--data {root}: no such folder; {layout}")
    base = root / split
    if not base.is_dir():
        raise UsageError(f"--data {root}: has no folder {split}/; {layout}")
    names = _folders(base)
    if len(names) != classes:
        raise UsageError(
            f"{base}: {len(names)} class folders, but data.classes is {classes}; give the right --data, or data.classes={len(names)}"
        )
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        with os.scandir(base / name) as entries:
            files = sorted(e.name for e in entries if e.name.lower().endswith(ENDINGS) and not e.name.startswith("."))
        if not files:
            raise UsageError(f"{base / name}: an empty class folder: no {', '.join(ENDINGS)} in it; add images or remove it")
        paths += [f"{base}/{name}/{file}" for file in files]
        labels += [label] * len(files)
    other = root / ("val" if split == "train" else "train")
    if other.is_dir() and (differ := sorted(set(_folders(other)) ^ set(names))):
        raise UsageError(
            f"{root}: train/ and val/ have other classes: {', '.join(differ[:5])}{' ...' if len(differ) > 5 else ''}; make them alike"
        )
    return Folder(paths, np.array(labels, np.int64), names)


def _folders(base: Path) -> list[str]:
    with os.scandir(base) as entries:
        names = sorted(e.name for e in entries if e.is_dir())
    hidden = [name for name in names if name.startswith(".")]
    if hidden:
        log.warning("%s: hidden folders are no classes and are ignored: %s", base, ", ".join(hidden))
    return [name for name in names if name not in hidden]
