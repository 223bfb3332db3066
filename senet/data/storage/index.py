"""The list of a split's images: where the bytes of each are and what its label is, whatever the format.

A format (folders, tars, ...) is a class in a file of its own, and a name in `find.FORMATS`. Images are always in
order of label and name, so a data set gives the same batches from each of them.

Listing 1.28 million images takes a while on a network file system. `Index.save` keeps the list in ROOT/index-train.npz;
it is used as long as what it was made from has not changed.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import logging
import os
import re
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from senet.data.philox import Ints, permutation
from senet.errors import UsageError
from senet.system import files

VERSION = 1  # of a saved list; one of another is made anew
_AWKWARD = re.compile(r"[.\s]")
S = TypeVar("S", bound="Storage")
log = logging.getLogger(__name__)


class Names(Sequence[str]):
    """Many short strings in one buffer: a list of 1.28 million takes three times the memory in each process."""

    def __init__(self, blob: NDArray[np.uint8], starts: Ints, ends: Ints) -> None:
        self.blob, self.starts, self.ends = blob, starts, ends

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        parts = [os.fsencode(name) for name in names]
        ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        return cls(np.frombuffer(b"".join(parts), np.uint8), np.concatenate([np.zeros(1, np.int64), ends[:-1]]), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, number: Any) -> Any:
        return os.fsdecode(self.blob[self.starts[number] : self.ends[number]].tobytes())

    def __reduce__(self) -> tuple[Any, ...]:
        """Send only the names themselves to another process: a small part of a list shares the whole list's buffer."""
        small = 2 * int((self.ends - self.starts).sum()) < self.blob.size
        kept = Names.of(self) if small else self
        return Names, (kept.blob, kept.starts, kept.ends)

    def subset(self, images: NDArray[Any]) -> Names:
        return Names(self.blob, self.starts[images], self.ends[images])


@dataclass(frozen=True)
class Storage(ABC):
    """Where the bytes of n images are."""

    root: Path
    names: Names  # [n] CLASS/FILE or, of shards that others made, anything that names each image once
    stamp: dict[str, Any]  # what changes when images are added, removed or replaced; as JSON gives it back
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)  # [n, ...] what else it takes to find an image

    @abstractmethod
    def read(self, image: int) -> bytes:
        """Return the bytes of an image file. Raises OSError if they cannot be read, ValueError if they are damaged."""

    def file(self, image: int) -> Path:
        """Return the file that an image is in: by default one of its own."""
        return self.root / self.names[image]

    @abstractmethod
    def sizes(self) -> Ints:
        """Return the bytes [n] of the images. Raises OSError."""

    def path(self, image: int) -> str:
        """Return what messages call an image: its file, and its name in there if the file has several."""
        return str(self.file(image))

    def packing_order(self, seed: int) -> Ints:
        """Return the images in the order in which shards take them: a random one that is cheap to read."""
        return permutation(seed, 0, len(self.names))

    def subset(self: S, images: NDArray[Any]) -> S:
        columns = {name: column[images] for name, column in self.columns.items()}
        return replace(self, names=self.names.subset(images), columns=columns)


class Format(Storage):
    """A storage that a data set may be kept in."""

    @classmethod
    @abstractmethod
    def holds(cls, root: Path, split: str) -> bool:
        """Tell whether ROOT keeps a split, train or val, in this format."""

    @classmethod
    @abstractmethod
    def scan(cls, root: Path, split: str) -> Index:
        """List the images of a split. Raises UsageError, OSError."""

    @classmethod
    @abstractmethod
    def unchanged(cls, root: Path, split: str, stamp: Mapping[str, Any]) -> bool:
        """Tell whether a list with this stamp still holds. Raises OSError."""


@dataclass(frozen=True)
class Index:
    """The n images of a split, in order of label and name."""

    storage: Storage
    labels: Ints  # [n], positions in `classes`
    classes: tuple[str, ...]  # by label; empty if the data set does not tell them

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, images: NDArray[Any]) -> Index:
        return Index(self.storage.subset(images), self.labels[images], self.classes)

    def sorted(self) -> Index:
        """Return images that were listed in any order in that of an index."""
        keys = [(label, order(name)) for label, name in zip(self.labels.tolist(), self.storage.names, strict=True)]
        return self.subset(np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64))

    @property
    def fingerprint(self) -> str:
        """16 digits that differ if the names of the image files, their order or their labels do, in any format."""
        digest = hashlib.sha256(self.labels.astype("<i8").tobytes())
        for start in range(0, len(self), 1 << 16):
            names = (self.storage.names[i] for i in range(start, min(start + (1 << 16), len(self))))
            digest.update("\n".join(key(name).rpartition("/")[2] for name in names).encode(errors="surrogateescape"))
        return digest.hexdigest()[:16]

    def save(self, file: Path) -> None:
        """Write the list. Raises OSError."""
        names = self.storage.names
        columns: dict[str, Any] = {"blob": names.blob, "starts": names.starts, "ends": names.ends}
        columns |= {"labels": self.labels, **self.storage.columns}
        form, base = type(self.storage).__name__, os.path.relpath(self.storage.root, file.parent)
        facts = {"version": VERSION, "form": form, "base": base, "classes": self.classes, "stamp": self.storage.stamp}
        head = json.dumps(facts)

        def fill(target: Path) -> None:
            with target.open("wb") as stream:
                np.savez(stream, head=np.frombuffer(head.encode(), np.uint8), **columns)

        files.replace(file, fill, shared=True)

    @classmethod
    def load(cls, file: Path, form: type[Format], fresh: Callable[[Mapping[str, Any]], bool]) -> Index | None:
        """Return the list in `file`, or None if there is none, it is of another format, or its stamp is not `fresh`."""
        try:
            with np.load(file, allow_pickle=False) as stored:
                columns = {name: stored[name] for name in stored.files}
            head = json.loads(columns.pop("head").tobytes())
            names = Names(*(columns.pop(name) for name in ("blob", "starts", "ends")))
            labels, stamp = columns.pop("labels"), head["stamp"]
            if (head.get("version"), head["form"]) != (VERSION, form.__name__) or not fresh(stamp):
                log.warning("%s: out of date; listing the images again", file)
                return None
            return cls(form(file.parent / head["base"], names, stamp, columns), labels, tuple(head["classes"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile):
            log.warning("%s: damaged; listing the images again", file)
            return None


def split_folder(root: Path, split: str) -> Path:
    """Return the folder of a split, train or val: of the names that are in use for it, the first that is there."""
    kaggle = (f"{folder}/{split}" for folder in ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC"))
    names = [split, *({"val": ("validation", "valid", "test")}.get(split, ())), *kaggle]
    there = [root / name for name in names if (root / name).is_dir()]
    return next((folder for folder in there if any(folder.iterdir())), there[0] if there else root / split)


def read_classes(root: Path) -> tuple[str, ...]:
    """Return the names in ROOT/classes.txt, a line each in order of label, or none without that file."""
    file = root / "classes.txt"
    if not file.exists():
        return ()
    lines = os.fsdecode(file.read_bytes().removeprefix(codecs.BOM_UTF8)).replace("\r\n", "\n").rstrip("\n")
    return tuple(lines.split("\n")) if lines else ()  # splitlines() would break names in other places, too


def write_classes(folder: Path, classes: Sequence[str]) -> None:
    """Write FOLDER/classes.txt, a name per line by label. Raises OSError, UsageError for a name of two lines."""
    if broken := next((name for name in classes if "\n" in name or "\r" in name), None):
        raise UsageError(f"{broken!r}: the name of a class with a line break in it; rename it")
    content = os.fsencode("".join(f"{name}\n" for name in classes))
    folder.mkdir(parents=True, exist_ok=True)
    files.replace(folder / "classes.txt", lambda target: target.write_bytes(content), shared=True)


def index_file(root: Path, split: str) -> Path:
    return root / f"index-{split}.npz"


def key(name: str) -> str:
    """Return an image's name in a shard: without ending, and without dots and blanks, which mean something there."""
    return _AWKWARD.sub("_", name.rpartition(".")[0])


def order(name: str) -> tuple[str, str]:
    """Return what to sort images of a class by: not the ending first, for shards may give another."""
    return key(name), name
