"""The demo set: a small problem in ImageNet's layout, drawn from a seed, for a first run without any download."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from senet.errors import UsageError
from senet.prepare.drawing import CLASSES, jpeg
from senet.prepare.writing import clear, each, put

MARKER = "demo.json"
CHUNK = 25  # pictures a job
VERSION = 1  # of the drawings: raise it when the same seed gives other pictures


@dataclass(frozen=True)
class Demo:
    """What defines a set: the images of each split and the seed. Equal values give equal bytes, given the same PIL and
    numpy.
    """

    train: int = 2000
    val: int = 500
    seed: int = 0

    def pictures(self) -> list[tuple[str, int]]:
        """(split, number) of every image; classes take turns by number."""
        return [("train", n) for n in range(self.train)] + [("val", n) for n in range(self.val)]


def prepare(folder: Path, demo: Demo, processes: int | None = None, note: Callable[[str], None] = print) -> None:
    """Write `folder`/train/CLASS/*.JPEG and `folder`/val/CLASS/*.JPEG, on as many `processes` as there are cores by
    default.

    A set that is there is kept; one that was interrupted is completed. `note` is told which. Raises UsageError where
    another set, or anything else, is in the folder, and for sizes that leave a class without images.
    """
    for split, count in (("train", demo.train), ("val", demo.val)):
        if count < len(CLASSES):
            raise UsageError(f"--{split} {count}: at least {len(CLASSES)}, one image a class")
    if demo.seed < 0:
        raise UsageError(f"--seed {demo.seed}: must not be negative")
    what = f"{demo.train} + {demo.val} images of {len(CLASSES)} classes, seed {demo.seed}"
    try:
        if _begun(folder, demo):
            note(f"{folder}: the demo set is there already: {what}")
            return
        missing = [(split, number) for split, number in demo.pictures() if not _path(folder, split, number).exists()]
        for split in ("train", "val"):
            for name in CLASSES:
                (folder / split / name).mkdir(parents=True, exist_ok=True)
        # A few are drawn sooner than processes start.
        jobs = [missing[start : start + CHUNK] for start in range(0, len(missing), CHUNK)]
        for _ in each(partial(_write, folder, demo.seed), jobs, 1 if len(missing) < 100 else processes):
            pass
        for path in {_path(folder, *picture).parent for picture in missing}:
            clear(path)
        _mark(folder, demo, complete=True)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written: {error.strerror or error}") from None
    note(f"{folder}: demo set written: {what}")


def _begun(folder: Path, demo: Demo) -> bool:
    """Whether the set is complete; marks the folder as its own if not."""
    found = _read_marker(folder / MARKER)
    if found is None:
        if folder.exists() and any(folder.iterdir()):
            raise UsageError(f"{folder}: not empty and not a demo set; name another folder")
        folder.mkdir(parents=True, exist_ok=True)
        _mark(folder, demo, complete=False)
        return False
    complete = found.pop("complete", False)
    if found != _parameters(demo):
        there = ", ".join(f"{key} {value}" for key, value in found.items())
        raise UsageError(f"{folder}: holds another demo set ({there}); name another folder or remove it")
    return bool(complete)


def _parameters(demo: Demo) -> dict[str, Any]:
    return asdict(demo) | {"version": VERSION}


def _read_marker(marker: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(marker.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UsageError(f"{marker}: not a demo set's marker; name another folder")
    return found


def _mark(folder: Path, demo: Demo, complete: bool) -> None:
    put(folder / MARKER, json.dumps(_parameters(demo) | {"complete": complete}).encode() + b"\n")


def _write(folder: Path, seed: int, pictures: list[tuple[str, int]]) -> None:
    for split, number in pictures:
        # A generator per picture: neither order nor processes nor an interruption changes it.
        rng = np.random.default_rng([seed, split == "val", number])
        put(_path(folder, split, number), jpeg(CLASSES[number % len(CLASSES)], rng))


def _path(folder: Path, split: str, number: int) -> Path:
    return folder / split / CLASSES[number % len(CLASSES)] / f"{split}_{number:06}.JPEG"
