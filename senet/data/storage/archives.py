"""Formats that keep many images in a file: what tars, TFRecords and Parquet have in common."""

import hashlib
import os
import re
import resource
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from senet.data.philox import Ints
from senet.data.storage.index import Format, Index, Names, read_classes, split_folder
from senet.errors import UsageError

SAMPLE = 4096  # bytes


class Member(NamedTuple):
    """An image in an archive."""

    label: int | str  # its number, or the name of its class
    name: str
    start: int  # its first byte
    size: int  # bytes
    shape: tuple[int, int] = (0, 0)  # height and width, if its pixels are stored as they are


class Archives(Format):
    """Images in the files of the stamp, each as it is: `spans` [n, 3] has the position of their file, first byte and
    bytes; `shapes` [n, 2] height and width of those whose pixels are stored as they are, zeros of others.

    A format defines `members`, the `patterns` of its files' names, and what to expect in them.
    """

    patterns: ClassVar[tuple[str, ...]]
    expected: ClassVar[str]

    @classmethod
    @abstractmethod
    def members(cls, path: Path) -> list[Member]:
        """List the labelled images in a file: none if it is not of this format. Raises UsageError if it is damaged."""

    @classmethod
    def find(cls, root: Path, split: str) -> list[Path]:
        """Return the files of a split: those in its folder, otherwise those in ROOT with its name in theirs."""

        def matching(folder: Path, word: str = "") -> list[Path]:
            found = {path for pattern in cls.patterns for path in folder.glob(f"[!.]{pattern}")}
            return sorted(path for path in found if re.search(rf"(?<![a-zA-Z]){word}", path.name))

        return (
            matching(split_folder(root, split))
            or matching(root, split)
            or (matching(root, "test") if split == "val" else [])
        )

    @classmethod
    def holds(cls, root: Path, split: str) -> bool:
        return bool(cls.find(root, split))

    @classmethod
    def scan(cls, root: Path, split: str) -> Index:
        """List the files of a split. Raises UsageError for one that is damaged, and if none has labelled images."""
        paths = cls.find(root, split)
        stamp = stamp_of(root, paths)
        members = [(number, member) for number, path in enumerate(paths) for member in cls.members(path)]
        if not members:
            raise UsageError(f"{paths[0].parent}: no labelled images in {len(paths)} files; expected {cls.expected}")
        labels, classes = _numbered(root, [member.label for _, member in members])
        names = [member.name for _, member in members]
        if len(set(names)) < len(names):  # names begin anew in each file
            names = [f"{paths[file].stem}/{member.name}" for file, member in members]
        if (least := min(labels)) < 0:
            raise UsageError(f"{root}: {names[labels.index(least)]}: label {least} (a test set?); labels start at 0")
        spans = np.array([(file, member.start, member.size) for file, member in members], np.int64)
        shapes = np.array([member.shape for _, member in members], np.int32)
        storage = cls(root, Names.of(names), stamp, {"spans": spans, "shapes": shapes})
        return Index(storage, np.array(labels, np.int64), classes).sorted()

    @classmethod
    def unchanged(cls, root: Path, split: str, stamp: Mapping[str, Any]) -> bool:
        return stamp_of(root, cls.find(root, split)) == stamp

    @cached_property
    def files(self) -> list[str]:
        return [f"{self.root}/{name}" for name in self.stamp["archives"]]

    def read(self, image: int) -> bytes:
        number, start, size = self.columns["spans"][image].tolist()
        handle = _open(self.files[number])  # by name: it must outlive the read
        content = os.pread(handle.number, size, start)
        if len(content) != size:
            raise ValueError(f"the archive ends before its {size} bytes")
        return content

    def file(self, image: int) -> Path:
        return Path(self.files[self.columns["spans"][image, 0]])

    def path(self, image: int) -> str:
        file = self.file(image)
        return f"{file}:{self.names[image].removeprefix(file.stem + '/')}"

    def sizes(self) -> Ints:
        return self.columns["spans"][:, 2]


def _numbered(root: Path, labels: Sequence[int | str]) -> tuple[list[int], tuple[str, ...]]:
    """Return labels as numbers, and the names of the classes: of ROOT/classes.txt, otherwise those that are labels, in
    order. Raises UsageError for a name that is not in the list.
    """
    classes = read_classes(root)
    if not any(isinstance(label, str) for label in labels):
        return [int(label) for label in labels], classes
    classes = classes or tuple(sorted({str(label) for label in labels}))
    known = {name: number for number, name in enumerate(classes)}
    if unknown := next((label for label in labels if str(label) not in known), None):
        raise UsageError(f"{root}: {unknown} is not in its classes.txt; mend that list or remove it")
    return [known[str(label)] for label in labels], classes


def as_label(value: Any) -> int | str:
    """Return a label as others write it: a number, also as text or with a point, or a name. Raises ValueError."""
    if isinstance(value, str) and value.strip() and not value.strip().lstrip("-").isdecimal():
        return value.strip()
    if value is None or (isinstance(value, float) and value != int(value)):
        raise ValueError(f"{value!r} is no label")
    return int(value)


def stamp_of(root: Path, archives: list[Path]) -> dict[str, Any]:
    """Return what tells archives apart, copied or not: names, bytes and a sample of these; and the class names."""
    sampled = {str(path.relative_to(root)): _sampled(path) for path in archives}
    return {"archives": sampled, "classes": list(read_classes(root))}


def _sampled(path: Path) -> list[Any]:
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        parts = (os.pread(file.fileno(), SAMPLE, start) for start in (0, size // 2, max(0, size - 3 * SAMPLE)))
        return [size, hashlib.sha256(b"".join(parts)).hexdigest()[:16]]


class _Handle:
    """An open file, closed when the last who uses it lets go."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


_open = lru_cache(maxsize=min(256, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))(_Handle)
