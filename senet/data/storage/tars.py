"""WebDataset shards: tars ROOT/train/*.tar or ROOT/*train*.tar with members KEY.jpg (or another image) and KEY.cls."""

from __future__ import annotations

import hashlib
import os
import resource
import tarfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from senet.data.philox import Ints
from senet.data.storage.folders import ENDINGS
from senet.data.storage.index import Index, Names, Storage, order, read_classes, split_folder
from senet.errors import UsageError

SAMPLE = 4096  # bytes
Found = tuple[int, str, int, int, int]  # label, name, archive, first byte, bytes


class Tars(Storage):
    """Images in archives, whose names are in the stamp; `spans` [n, 3] has their archive, first byte and bytes."""

    @classmethod
    def holds(cls, root: Path, split: str) -> bool:
        return bool(find_shards(root, split))

    @classmethod
    def scan(cls, root: Path, split: str) -> Index:
        """List the shards of a split. Raises UsageError for a tar that is not one."""
        shards = find_shards(root, split)
        stamp = stamp_of(root, shards)
        found = [image for number, path in enumerate(shards) for image in _members(path, number)]
        if not found:
            raise UsageError(
                f"{shards[0].parent}: no images in its {len(shards)} shards; expected members KEY.jpg and KEY.cls"
            )
        if len({image[1] for image in found}) < len(found):  # names begin anew in each shard
            found = [(image[0], f"{shards[image[2]].stem}/{image[1]}", *image[2:]) for image in found]
        found.sort(key=lambda image: (image[0], order(image[1])))
        if found[0][0] < 0:
            raise UsageError(f"{root}: {found[0][1]}: label {found[0][0]} in a .cls; labels start at 0")
        numbers = np.array([image[:1] + image[2:] for image in found], np.int64)
        storage = cls(root, Names.of(image[1] for image in found), stamp, {"spans": numbers[:, 1:].copy()})
        return Index(storage, numbers[:, 0].copy(), tuple(stamp["classes"]))

    @classmethod
    def unchanged(cls, root: Path, split: str, stamp: Mapping[str, Any]) -> bool:
        return stamp_of(root, find_shards(root, split)) == stamp

    def read(self, image: int) -> bytes:
        _, start, size = (int(number) for number in self.columns["spans"][image])
        handle = _open(str(self.file(image)))  # by name: it must outlive the read
        content = os.pread(handle.number, size, start)
        if len(content) != size:
            raise ValueError(f"the archive ends before its {size} bytes")
        return content

    def file(self, image: int) -> Path:
        return self.root / self.archives[self.columns["spans"][image, 0]]

    def path(self, image: int) -> str:
        file = self.file(image)
        return f"{file}:{self.names[image].removeprefix(file.stem + '/')}"

    def sizes(self) -> Ints:
        sizes: Ints = self.columns["spans"][:, 2]
        return sizes

    @property
    def archives(self) -> list[str]:
        return list(self.stamp["archives"])


def find_shards(root: Path, split: str) -> list[Path]:
    """Return the paths of ROOT/train/*.tar, otherwise of ROOT/*train*.tar."""
    inside = sorted(split_folder(root, split).glob("[!.]*.tar"))
    return inside or sorted(path for path in root.glob("[!.]*.tar") if split in path.name)


def stamp_of(root: Path, archives: list[Path]) -> dict[str, Any]:
    """Return what tells archives apart, copied or not: their paths below ROOT with their bytes and a sample of these;
    and the names of the classes.
    """
    sampled = {str(path.relative_to(root)): _sampled(path) for path in archives}
    return {"archives": sampled, "classes": list(read_classes(root))}


def _sampled(path: Path) -> list[Any]:
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        parts = (os.pread(file.fileno(), SAMPLE, start) for start in (0, size // 2, max(0, size - 3 * SAMPLE)))
        return [size, hashlib.sha256(b"".join(parts)).hexdigest()[:16]]


def _members(path: Path, number: int) -> list[Found]:
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                folder, _, name = member.name.rpartition("/")
                stem, _, ending = name.partition(".")
                if member.isreg() and "." + ending.lower() in ENDINGS:
                    images[f"{folder}/{stem}"] = (member.name, member.offset_data, member.size)
                elif member.isreg() and ending == "cls":
                    content = archive.extractfile(member)
                    labels[f"{folder}/{stem}"] = int(content.read(20)) if content else -1
    except (tarfile.TarError, OSError, ValueError) as error:
        raise UsageError(f"{path}: not a readable shard ({error}); expected a tar of KEY.jpg and KEY.cls") from None
    if lacking := images.keys() ^ labels.keys():
        raise UsageError(
            f"{path}: {min(lacking).strip('/')}: an image without a label (.cls), or the other way round; "
            "mend the shard"
        )
    return [(labels[stem], name, number, start, size) for stem, (name, start, size) in images.items()]


class _Handle:
    """An open file, closed when the last who uses it lets go."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


_open = lru_cache(maxsize=min(256, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))(_Handle)
