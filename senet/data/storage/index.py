"""Which images a split has, where the bytes of each are, and its label: image folders and shards (tars) alike.

Two layouts, told apart by what is there: ROOT/train/CLASS/*.JPEG, or WebDataset shards ROOT/train/*.tar or
ROOT/*train*.tar. Either way images are in order of label and name, so a data set gives the same batches from folders
and from shards.

Listing 1.28 million images takes a while on a network file system. `Index.save` keeps the list in ROOT/index-train.npz;
it is used as long as the folders or shards it was made from have not changed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import tarfile
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from senet.data.philox import Ints
from senet.errors import UsageError

ENDINGS = (".jpeg", ".jpg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
LAYOUT = "expected DIR/train/CLASS/*.JPEG and DIR/val/CLASS/*.JPEG, or shards DIR/train/*.tar and DIR/val/*.tar"
_AWKWARD = re.compile(r"[.\s]")
log = logging.getLogger(__name__)


class Names(Sequence[str]):
    """Many short strings in one buffer: a list of 1.28 million takes three times the memory, and more in each forked
    process.
    """

    def __init__(self, blob: NDArray[np.uint8], starts: Ints, ends: Ints) -> None:
        self.blob, self.starts, self.ends = blob, starts, ends

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        parts = [os.fsencode(name) for name in names]
        ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        return cls(
            np.frombuffer(b"".join(parts), np.uint8),
            np.concatenate([np.zeros(1, np.int64), ends])[:-1][: len(parts)],
            ends,
        )

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, place: Any) -> Any:
        return os.fsdecode(self.blob[self.starts[place] : self.ends[place]].tobytes())

    def subset(self, places: NDArray[Any]) -> Names:
        return Names(self.blob, self.starts[places], self.ends[places])


@dataclass(frozen=True)
class Index:
    """The n images of a split. `names` are paths below `root`: of files in folders, of members in archives."""

    root: Path
    names: Names
    labels: Ints  # [n], places in `classes`
    classes: tuple[str, ...]  # sorted; shards of others may not tell them: empty
    archives: tuple[str, ...] = ()  # tars below `root`, where the images are in some
    places: Ints | None = None  # [n, 3] archive, first byte, bytes

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, image: int) -> str:
        """What to call an image when talking of it."""
        if self.places is None:
            return f"{self.root}/{self.names[image]}"
        return f"{self.root}/{self.archives[self.places[image, 0]]}:{self.names[image]}"

    def read(self, image: int) -> bytes:
        """The bytes of an image file. Raises OSError."""
        if self.places is None:
            with open(f"{self.root}/{self.names[image]}", "rb", buffering=0) as file:
                return file.readall()
        archive, start, size = (int(n) for n in self.places[image])
        handle = _open(f"{self.root}/{self.archives[archive]}")  # by name: it must outlive the read
        content = os.pread(handle.number, size, start)
        if len(content) != size:
            raise OSError(f"the archive ends before its {size} bytes")
        return content

    def subset(self, images: NDArray[Any]) -> Index:
        places = self.places if self.places is None else self.places[images]
        return replace(self, names=self.names.subset(images), labels=self.labels[images], places=places)

    @property
    def fingerprint(self) -> str:
        """Of the images' names, order and labels, wherever they are kept."""
        digest = hashlib.sha256(self.labels.astype("<i8").tobytes())
        for start in range(0, len(self), 1 << 16):
            keys = (key(self.names[i]) for i in range(start, min(start + (1 << 16), len(self))))
            digest.update("\n".join(keys).encode(errors="surrogateescape"))
        return digest.hexdigest()[:16]

    def save(self, file: Path, stamp: dict[str, Any]) -> None:
        """Write the list; `stamp` is what `load` must find unchanged."""
        columns: dict[str, Any] = {
            "blob": self.names.blob,
            "starts": self.names.starts,
            "ends": self.names.ends,
            "labels": self.labels,
        }
        if self.places is not None:
            columns["places"] = self.places
        head = {"classes": self.classes, "archives": self.archives, "stamp": stamp}
        temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
        with temporary.open("wb") as target:
            np.savez(target, head=np.frombuffer(json.dumps(head).encode(), np.uint8), **columns)
        os.replace(temporary, file)

    @classmethod
    def load(cls, root: Path, file: Path, stamp: dict[str, Any]) -> Index | None:
        """The list in `file`, or None if there is none or what it was made from has changed."""
        try:
            with np.load(file, allow_pickle=False) as columns:
                head = json.loads(columns["head"].tobytes())
                if head["stamp"] != stamp:
                    log.warning("%s: out of date, listing the images again; launch.prepare audit makes a new one", file)
                    return None
                names = Names(columns["blob"], columns["starts"], columns["ends"])
                places = columns.get("places")
                return cls(root, names, columns["labels"], tuple(head["classes"]), tuple(head["archives"]), places)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            log.warning("%s: damaged, listing the images again; launch.prepare audit makes a new one", file)
            return None


class _Handle:
    """An open file, closed when the last who uses it lets go."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


_open = lru_cache(maxsize=256)(_Handle)


def find(root: Path, split: str, classes: int) -> Index:
    """The images of ROOT's `split` (train or val), without those that an audit found undecodable.

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
        raise UsageError(
            f"{root}: has labels up to {index.labels.max()}, but data.classes is {classes}; set data.classes to fit"
        )
    return without(index, _audited(root, split))


def listing(root: Path, split: str) -> Index:
    """All images of a split, from its saved index where that is up to date. Raises UsageError as `find`."""
    if not root.is_dir():
        raise UsageError(f"--data {root}: no such folder; {LAYOUT}")
    shards = find_shards(root, split)
    if not shards and not (root / split).is_dir():
        raise UsageError(f"--data {root}: has neither a folder {split}/ nor shards of that name; {LAYOUT}")
    saved = Index.load(root, index_file(root, split), stamp(root, split))
    if saved is not None:
        return saved
    return scan_shards(root, shards) if shards else scan_folder(root, split)


def index_file(root: Path, split: str) -> Path:
    return root / f"index-{split}.npz"


def stamp(root: Path, split: str) -> dict[str, Any]:
    """What changes when images are added or removed: times of the class folders; sizes and times of the shards."""
    shards = find_shards(root, split)
    if shards:
        return {str(path.relative_to(root)): [(at := path.stat()).st_size, at.st_mtime_ns] for path in shards}
    return {name: (root / split / name).stat().st_mtime_ns for name in class_folders(root / split)[0]}


def find_shards(root: Path, split: str) -> list[Path]:
    """ROOT/train/*.tar, or ROOT/*train*.tar; `val` is also found in `validation`."""
    inside = sorted((root / split).glob("[!.]*.tar")) if (root / split).is_dir() else []
    return inside or sorted(path for path in root.glob("[!.]*.tar") if split in path.name)


def class_folders(base: Path) -> tuple[list[str], list[str]]:
    """The class folders in `base`, sorted, and the hidden ones, which are no classes."""
    with os.scandir(base) as entries:
        names = sorted(e.name for e in entries if e.is_dir())
    return [n for n in names if not n.startswith(".")], [n for n in names if n.startswith(".")]


def scan_folder(root: Path, split: str) -> Index:
    """List ROOT/SPLIT/CLASS/*. Raises UsageError for an empty class, or other classes than in the other split."""
    base = root / split
    classes, hidden = class_folders(base)
    if hidden:
        log.warning("%s: hidden folders are no classes and are ignored: %s", base, ", ".join(hidden))
    if not classes:
        raise UsageError(f"{base}: no class folders in it; {LAYOUT}")
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        with os.scandir(base / name) as entries:
            files = [e.name for e in entries if e.name.lower().endswith(ENDINGS) and not e.name.startswith(".")]
        if not files:
            raise UsageError(
                f"{base / name}: an empty class folder: no {', '.join(ENDINGS)} in it; add images or remove it"
            )
        names += [f"{split}/{name}/{file}" for file in sorted(files, key=_order)]
        labels += [label] * len(files)
    other = root / ("val" if split == "train" else "train")
    if other.is_dir() and (differ := sorted(set(class_folders(other)[0]) ^ set(classes))):
        raise UsageError(
            f"{root}: train/ and val/ have other classes: "
            f"{', '.join(differ[:5])}{' ...' if len(differ) > 5 else ''}; make them alike"
        )
    return Index(root, Names.of(names), np.array(labels, np.int64), tuple(classes))


def scan_shards(root: Path, shards: list[Path]) -> Index:
    """List WebDataset shards: members KEY.jpg (or another image) and KEY.cls, a label in digits. Raises UsageError for
    anything else.
    """
    found: list[tuple[int, str, int, int, int]] = []  # label, name, archive, first byte, bytes
    for number, path in enumerate(shards):
        images: dict[str, tuple[str, int, int]] = {}
        labels: dict[str, int] = {}
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    key, _, ending = member.name.rpartition("/")[2].partition(".")
                    key = f"{member.name.rpartition('/')[0]}/{key}"
                    if member.isreg() and "." + ending.lower() in ENDINGS:
                        images[key] = (member.name, member.offset_data, member.size)
                    elif member.isreg() and ending == "cls":
                        content = archive.extractfile(member)
                        labels[key] = int(content.read(20)) if content else -1
        except (tarfile.TarError, OSError, ValueError) as error:
            raise UsageError(f"{path}: not a readable shard ({error}); expected a tar of KEY.jpg and KEY.cls") from None
        if lacking := images.keys() ^ labels.keys():
            raise UsageError(
                f"{path}: {min(lacking).strip('/')}: an image without a label (.cls), or the other "
                "way round; mend the shard"
            )
        found += [(labels[key], name, number, start, size) for key, (name, start, size) in images.items()]
    if not found:
        raise UsageError(
            f"{shards[0].parent}: no images in its {len(shards)} shards; expected members KEY.jpg and KEY.cls"
        )
    found.sort(key=lambda image: (image[0], _order(image[1])))
    if found[0][0] < 0:
        raise UsageError(f"{root}: {found[0][1]}: label {found[0][0]} in a .cls; labels start at 0")
    archives = tuple(str(path.relative_to(root)) for path in shards)
    numbers = np.array([image[:1] + image[2:] for image in found], np.int64)
    return Index(
        root,
        Names.of(image[1] for image in found),
        numbers[:, 0].copy(),
        read_classes(root),
        archives,
        numbers[:, 1:].copy(),
    )


def read_classes(root: Path) -> tuple[str, ...]:
    """The names in ROOT/classes.txt, a line each in order of label; none without the file, as in shards that others
    made.
    """
    file = root / "classes.txt"
    return tuple(file.read_text().split("\n")[:-1]) if file.exists() else ()


def key(name: str) -> str:
    """What an image is called wherever it is kept: CLASS/STEM, without the dots and blanks that mean something in
    shards.
    """
    return _AWKWARD.sub("_", "/".join(name.rpartition(".")[0].split("/")[-2:]))


def _order(name: str) -> tuple[str, str]:
    """Not by the ending: the order does not depend on what an image is called in a shard."""
    return key(name), name


def without(index: Index, bad: dict[str, str]) -> Index:
    """The index without the images named in `bad` (name -> reason)."""
    if not bad:
        return index
    keep = np.array([name not in bad for name in index.names], bool)
    log.warning(
        "%s: %d images left out that an audit found undecodable (audit.json names them)", index.root, int((~keep).sum())
    )
    return index.subset(np.flatnonzero(keep))


def _audited(root: Path, split: str) -> dict[str, str]:
    """What ROOT/audit.json found undecodable in a split: name -> reason; files that were replaced since then do not
    count.
    """
    file = root / "audit.json"
    try:
        found = json.loads(file.read_text())["splits"].get(split, {}).get("undecodable", {})
        return {name: entry["reason"] for name, entry in found.items() if _unchanged(root / entry["file"], entry)}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(
            f"{file}: damaged; remove it, or make it anew: python -m launch.prepare audit {root}"
        ) from None


def _unchanged(path: Path, entry: dict[str, Any]) -> bool:
    try:
        found = path.stat()
    except FileNotFoundError:
        return True
    return bool(found.st_size == entry["bytes"] and found.st_mtime_ns == entry["modified_ns"])
