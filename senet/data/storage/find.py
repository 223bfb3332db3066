"""The images of a data set's split, in whatever format they are, without those that an audit found undecodable."""

import functools
import json
import logging
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Timer
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np

from senet.data.storage.folders import ENDINGS, LAYOUT, Folders, class_folders, composed
from senet.data.storage.index import Format, Index, index_file, split_folder
from senet.data.storage.lists import Listed
from senet.data.storage.parquet import Parquet
from senet.data.storage.tars import Tars
from senet.data.storage.tfrecords import TFRecords
from senet.errors import REMEDIES, UsageError

FORMATS: tuple[type[Format], ...] = (Listed, Folders, Tars, TFRecords, Parquet)  # the first that holds a split is used
AUDIT = 2  # the format of audit.json
SLOW = 5.0  # seconds of listing after which the list is kept
P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger(__name__)


def _explained(ask: Callable[Concatenate[Path, P], T]) -> Callable[Concatenate[Path, P], T]:
    """Let a function about the data set in ROOT say what could not be read, by UsageError."""

    @functools.wraps(ask)
    def asked(root: Path, /, *words: P.args, **more: P.kwargs) -> T:
        try:
            return ask(root, *words, **more)
        except OSError as error:
            path, remedy = os.fsdecode(error.filename or root), REMEDIES.get(error.errno or 0, "mend it")
            raise UsageError(f"{path}: cannot be read: {error.strerror or error}; {remedy}") from None

    return asked


def find(root: Path, split: str, classes: int) -> Index:
    """Return the images of ROOT's `split` (train or val) that no audit found undecodable.

    Raises UsageError for a missing folder, an empty class, another number of classes than the config says, and other
    classes in the other split.
    """
    index = listing(root, split)
    if index.classes and len(index.classes) != classes:
        raise UsageError(
            f"{root}: {len(index.classes)} classes in {split}, but data.classes is {classes}; "
            f"give the right --data, or data.classes={len(index.classes)}"
        )
    if index.labels.max() >= classes:
        raise UsageError(f"{root}: has labels up to {index.labels.max()}, but data.classes is {classes}; raise it")
    if bad := _audited(root, split):
        start = len(str(root)) + 1
        keep = np.array([index.storage.path(image)[start:] not in bad for image in range(len(index))], bool)
        log.warning("%s: %d images left out that an audit found undecodable (see audit.json)", root, (~keep).sum())
        return index.subset(np.flatnonzero(keep))
    return index


@_explained
def listing(root: Path, split: str) -> Index:
    """Return all images of a split, from its saved index if that is up to date. Raises UsageError as `find`."""
    folder = split_folder(root, split)
    if folder.is_dir() and folder != root / split:
        log.warning("%s: has no %s/; %s/ is used for it", root, split, folder.relative_to(root))
    if (saved := saved_listing(root, split)) is not None:
        return saved
    file, began = index_file(root, split), time.monotonic()
    stale = file.exists()
    notice = Timer(SLOW, log.info, ("%s: listing the images of %s; the list is kept for the next start", root, split))
    notice.start()
    try:
        index = scan(root, split)
    finally:
        notice.cancel()
    if stale or time.monotonic() - began > SLOW:
        try:
            index.save(file)
        except OSError as error:
            log.warning("%s: cannot be written (%s); every start lists the images anew", file, error.strerror or error)
    return index


@_explained
def scan(root: Path, split: str) -> Index:
    """Look for the images of a split, and save nothing. Raises UsageError as `find`."""
    index = form_of(root, split).scan(root, split)
    both = {part: split_folder(root, part) for part in splits(root) if form_of(root, part) is Folders}
    classes = [set(class_folders(root, folder)) for folder in both.values()]
    if len(both) == 2 and (differ := sorted(classes[0] ^ classes[1])):
        alike = len({composed(name) for name in differ}) < len(differ)
        why = " (names that look alike are composed otherwise, NFC and NFD: see convmv)" if alike else ""
        raise UsageError(
            f"{root}: {' and '.join(folder.name + '/' for folder in both.values())} have other classes: "
            f"{', '.join(differ[:5])}{' ...' if len(differ) > 5 else ''}{why}; make them alike"
        )
    return index


def saved_listing(root: Path, split: str) -> Index | None:
    """Return the saved index of a split, or None if there is none that is up to date. Raises UsageError likewise."""
    form = form_of(root, split)
    return Index.load(index_file(root, split), form, partial(form.unchanged, root, split))


@_explained
def form_of(root: Path, split: str) -> type[Format]:
    """Return the format of a split. Raises UsageError if ROOT has it in none."""
    if not root.is_dir():
        raise UsageError(f"--data {root}: {'a file, no folder' if root.exists() else 'no such folder'}; {LAYOUT}")
    if (form := known_form(root, split)) is not None:
        return form
    folder = split_folder(root, split)
    if folder.is_dir() and not any(folder.iterdir()):
        raise UsageError(f"{folder}: an empty folder; {LAYOUT}")
    if folder.is_dir() and any(name.lower().endswith(ENDINGS) for name in os.listdir(folder)):
        raise UsageError(
            f"{folder}: its images lie side by side, without labels; put LOC_val_solution.csv into {root} if they are "
            "ImageNet's, or use: python -m launch.prepare imagenet DIR --val-labels FILE; otherwise class folders"
        )
    if folder.is_dir():
        raise UsageError(f"{folder}: no image in class folders and no shards in it; {LAYOUT}")
    near = (path for path in (root.absolute().parent, *sorted(root.iterdir())) if path.is_dir())
    meant = next((f"did you mean --data {path}? " for path in near if known_form(path, split)), "")
    raise UsageError(f"--data {root}: has neither a folder {split}/ nor shards of that name; {meant}{LAYOUT}")


def known_form(root: Path, split: str) -> type[Format] | None:
    """Return the format of a split, or None if ROOT has it in none. Raises OSError."""
    return next((form for form in FORMATS if form.holds(root, split)), None)


@_explained
def splits(root: Path) -> list[str]:
    """Return those of train and val that ROOT has. Raises UsageError if it has neither."""
    found = [split for split in ("train", "val") if known_form(root, split)]
    if not found:
        form_of(root, "train")  # says what is amiss
    return found


def _audited(root: Path, split: str) -> dict[str, str]:
    """Return what ROOT/audit.json found undecodable in a split (path -> reason) and nobody has replaced since."""
    file = root / "audit.json"
    try:
        found = json.loads(file.read_text())
        if found["format"] != AUDIT:
            log.warning("%s: of another version, not used; make it anew: python -m launch.prepare audit %s", file, root)
            return {}
        bad = found["splits"].get(split, {}).get("undecodable", {})
        return {path: entry["reason"] for path, entry in bad.items() if _unchanged(root / entry["file"], entry)}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"{file}: damaged; remove it or make it anew: python -m launch.prepare audit {root}") from None


def _unchanged(path: Path, entry: dict[str, Any]) -> bool:
    try:
        now = path.stat()
    except FileNotFoundError:
        return True
    return bool(now.st_size == entry["bytes"] and now.st_mtime_ns == entry["modified_ns"])
