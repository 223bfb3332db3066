"""Image folders: ROOT/train/CLASS/*.JPEG and ROOT/val/CLASS/*.JPEG, also in sub-folders of a class."""

import errno
import logging
import os
import shlex
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from senet.data.philox import Ints
from senet.data.storage.index import Format, Index, Names, order, read_classes, split_folder
from senet.errors import UsageError

ENDINGS = (".jpeg", ".jpg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
STRANGERS = ("__MACOSX", "lost+found", "@eaDir", "$RECYCLE.BIN", "System Volume Information")  # what systems add
LAYOUT = "expected DIR/train/CLASS/*.JPEG and DIR/val/CLASS/*.JPEG, or shards DIR/train/*.tar and DIR/val/*.tar"
log = logging.getLogger(__name__)


class Folders(Format):
    """A file for each image."""

    @classmethod
    def holds(cls, root: Path, split: str) -> bool:
        base = split_folder(root, split)
        return base.is_dir() and any(True for name in _folders(base) for _ in images_below(base, {}, name))

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
                raise UsageError(f"{base / name}: an empty class folder: no {', '.join(ENDINGS)}; fill or remove it")
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
        with open(os.path.join(self.root, self.names[image]), "rb", buffering=0) as file:
            return file.readall()

    def sizes(self) -> Ints:
        return np.array([os.stat(os.path.join(self.root, name)).st_size for name in self.names], np.int64)


def stamp_of(root: Path, base: Path, folders: Iterable[str]) -> dict[str, Any]:
    """Return the classes by label, and when something was last added to or removed from `folders`, in nanoseconds."""
    return {"classes": class_folders(root, base), "times": {name: _time(base / name) for name in folders}}


def class_folders(root: Path, base: Path, warn: bool = False) -> list[str]:
    """Return the class folders in `base` by label: in the order of ROOT/classes.txt if that fits, or by name."""
    names, listed = _folders(base), [composed(name) for name in read_classes(root)]
    own = {composed(name): name for name in names}
    if sorted(listed) == sorted(own):
        return [own[name] for name in listed]
    if not warn:
        return names
    if listed:
        differ = sorted({*listed} ^ {*own}) or ["a name twice"]
        text = "%s: classes.txt lists other classes than %s has (%s); it is not used"
        log.warning(text, root, base, ", ".join(differ[:3]))
    if ignored := _folders(base, ignored=True):
        log.warning("%s: folders of these names are no classes and are ignored: %s", base, ", ".join(ignored))
    if all(name.isdecimal() for name in names) and sorted(names, key=int) != names:
        log.warning(
            "%s: its class folders are numbers, and labels follow them as text (%s ...), as in torchvision; "
            "for the order of numbers, which timm uses: ls %s | sort -n > %s",
            base, ", ".join(names[:3]), shlex.quote(str(base)), shlex.quote(str(root / "classes.txt")),
        )  # fmt: skip
    return names


def composed(name: str) -> str:
    """Return a name as most systems write it (NFC): macOS takes accents apart."""
    return unicodedata.normalize("NFC", name)


def _folders(base: Path, ignored: bool = False) -> list[str]:
    """Return the class folders in `base`, or those that are `ignored`, by name."""
    with os.scandir(base) as entries:
        return sorted(entry.name for entry in entries if _is_folder(entry) and is_ignored(entry.name) == ignored)


def is_ignored(name: str) -> bool:
    """Tell whether what is called so, file or folder, belongs to no data set."""
    return name.startswith(".") or name in STRANGERS


def _is_folder(entry: os.DirEntry[str], follow: bool = True) -> bool:
    try:
        return entry.is_dir(follow_symlinks=follow)
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself, as good as one to nothing
            return False
        raise


def _time(folder: Path) -> int:
    return folder.stat().st_mtime_ns


def images_below(base: Path, times: dict[str, int], folder: str = "") -> Iterator[str]:
    """Yield the paths below `base` of the images in a folder there, and enter it and its sub-folders in `times`."""
    times[folder] = _time(base / folder)  # first: what is added in the meantime must not go unnoticed
    with os.scandir(base / folder) as entries:
        for entry in entries:
            if is_ignored(entry.name):
                continue
            path, is_image = os.path.join(folder, entry.name), entry.name.lower().endswith(ENDINGS)
            # Whether a link is a folder takes a question to the file system: none for what is called an image.
            if _is_folder(entry, follow=not is_image):
                if entry.is_symlink() and (base / folder).resolve().is_relative_to(Path(entry.path).resolve()):
                    log.warning("%s: leads back to a folder that it is in, and is ignored", entry.path)
                else:
                    yield from images_below(base, times, path)
            elif is_image:
                yield path
