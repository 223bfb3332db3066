"""Where the images of ImageNet (ILSVRC2012) are, as people have it: the published tars, what was unpacked from them,
wholly or in part, and Kaggle's zip. Nothing is unpacked first: images are read from where they lie.
"""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from senet.data.philox import Ints
from senet.data.storage.archives import stamp_of
from senet.data.storage.folders import Folders, images_below
from senet.data.storage.index import Index, Names, Storage
from senet.data.storage.tars import Tars
from senet.errors import UsageError
from senet.prepare import archive
from senet.prepare.archive import Member
from senet.prepare.pool import count, each

LARGEST_IMAGE = 64 << 20  # bytes; the largest of the real ones has 16 MB
LARGEST_CLASS = 4 << 30
WNID = r"n\d{8}"
KAGGLE = "ILSVRC/Data/CLS-LOC/"


def train_images(path: Path, saved: Path, processes: int | None = None) -> Storage:
    """Find the training images, named WNID/FILE, in the published tar or in a folder of class tars, class folders or
    both: of a class that has both, the tar counts. `saved` keeps what the published tar holds. Raises UsageError.
    """
    if path.is_file():
        stamp = stamp_of(path.parent, [path])
        if (known := Index.load(saved, Tars, lambda listed: listed == stamp)) is not None:
            return replace(known.storage, root=path.parent)
        inner = archive.members(path, 0, path.stat().st_size, WNID + r"\.tar", LARGEST_CLASS)
        storage = _tars(path.parent, path, inner, processes)
        Index(storage, np.zeros(len(storage.names), np.int64), ()).save(saved)
        return storage
    entries = sorted(entry for entry in path.iterdir() if re.fullmatch(WNID + r"(\.tar)?", entry.name))
    tars = [Member(entry.name, 0, entry.stat().st_size) for entry in entries if entry.suffix]
    folders = [entry.name for entry in entries if entry.is_dir() and path / f"{entry.name}.tar" not in entries]
    if not tars and not folders:
        raise UsageError(f"{path}: neither class tars (n01440764.tar) nor class folders (n01440764/) in it")
    parts = [_tars(path, None, tars, processes)] if tars else []
    return joined([*parts, *([_folder(path, folders)] if folders else [])])


def val_images(path: Path) -> Storage:
    """Find the validation images, named FILE or WNID/FILE, in the published tar or in a folder. Raises UsageError."""
    if path.is_file():
        images = sorted(archive.members(path, 0, path.stat().st_size, r"ILSVRC2012_val_\d{8}\.JPEG", LARGEST_IMAGE))
        spans = np.array([(0, start, size) for _, start, size in images], np.int64).reshape(-1, 3)
        names = Names.of(name for name, _, _ in images)
        return Tars(path.parent, names, stamp_of(path.parent, [path]), {"spans": spans})
    return _folder(path, [""])


def kaggle_images(path: Path) -> tuple[dict[str, Storage], str]:
    """Find the images of each split, as above, in Kaggle's zip; returns them and its list of validation labels."""
    try:
        with zipfile.ZipFile(path) as file:
            members = [info for info in file.infolist() if info.filename.startswith(KAGGLE) and info.file_size]
            labels = file.read("LOC_val_solution.csv").decode()
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path}: not Kaggle's archive of ImageNet, or a damaged one ({error})") from None
    found: dict[str, Storage] = {}
    for split, pattern in (("train", rf"{WNID}/[^/]+\.JPEG"), ("val", r"[^/]+\.JPEG")):
        start = len(KAGGLE) + len(split) + 1
        own = [info for info in members if info.filename.startswith(f"{KAGGLE}{split}/")]
        for info in own:
            size = max(info.file_size, info.compress_size)
            if size > LARGEST_IMAGE or not re.fullmatch(pattern, info.filename[start:]):
                raise UsageError(f"{path}: refused: {info.filename!r} of {size} bytes does not belong there")
        own.sort(key=lambda info: info.filename)
        spans = np.array([(i.header_offset, i.compress_size, i.file_size, i.compress_type) for i in own], np.int64)
        found[split] = Zip(path.parent, Names.of(i.filename[start:] for i in own), {"zip": path.name}, {"spans": spans})
    return found, labels


class Zip(Storage):
    """Images in a zip. `spans` [n, 4] has where each begins, its packed bytes, its bytes and how it is packed."""

    def read(self, image: int) -> bytes:
        at, packed, size, method = self.columns["spans"][image].tolist()
        with self.file(image).open("rb") as stream:
            stream.seek(at)
            head = stream.read(30)
            stream.seek(int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little"), os.SEEK_CUR)
            content = stream.read(packed)
        try:
            if method == zipfile.ZIP_DEFLATED:  # no more than it says, for it may be hostile
                content = zlib.decompressobj(-15).decompress(content, size + 1)
        except zlib.error as error:
            raise ValueError(f"damaged in the zip: {error}") from None
        if len(content) != size:
            raise ValueError(f"the zip has {len(content)} of its {size} bytes")
        return content

    def file(self, image: int) -> Path:
        return self.root / str(self.stamp["zip"])

    def path(self, image: int) -> str:
        return f"{self.file(image)}:{self.names[image]}"

    def sizes(self) -> Ints:
        return self.columns["spans"][:, 2]


@dataclass(frozen=True)
class Joined(Storage):
    """Images of other storages, under names of their own: `part` [n] and `image` [n] say of which and which."""

    parts: tuple[Storage, ...] = ()

    def _at(self, image: int) -> tuple[Storage, int]:
        return self.parts[self.columns["part"][image]], int(self.columns["image"][image])

    def read(self, image: int) -> bytes:
        part, number = self._at(image)
        return part.read(number)

    def file(self, image: int) -> Path:
        part, number = self._at(image)
        return part.file(number)

    def path(self, image: int) -> str:
        part, number = self._at(image)
        return part.path(number)

    def sizes(self) -> Ints:
        sizes = np.zeros(len(self.names), np.int64)
        for number, part in enumerate(self.parts):
            own = self.columns["part"] == number
            sizes[own] = part.sizes()[self.columns["image"][own]]
        return sizes

    def subset(self, images: NDArray[np.int64]) -> Joined:
        part, image = self.columns["part"][images], self.columns["image"][images]
        parts = tuple(old.subset(image[part == number]) for number, old in enumerate(self.parts))
        renumbered = np.zeros(len(images), np.int64)
        for number in range(len(parts)):
            renumbered[part == number] = np.arange((part == number).sum())
        columns = {"part": part, "image": renumbered}
        return replace(self, names=self.names.subset(images), columns=columns, parts=parts)


def joined(parts: Sequence[Storage], names: Names | None = None) -> Joined:
    """Put the images of several storages together, under `names` if they are to have others than there."""
    names = names or Names.of(name for part in parts for name in part.names)
    sizes = [len(part.names) for part in parts]
    columns = {"part": np.repeat(np.arange(len(parts)), sizes), "image": np.concatenate([np.arange(n) for n in sizes])}
    return Joined(parts[0].root, names, {}, columns, tuple(parts))


def _tars(root: Path, outer: Path | None, tars: list[Member], processes: int | None) -> Storage:
    """List the images in class tars: those that lie in a tar themselves, or files in `root`."""
    jobs = [(outer or root / name, start, size, name.partition(".")[0]) for name, start, size in tars]
    workers = processes if len(jobs) > 1 else 1
    listed = each(_list, jobs, workers, "listing train", len(jobs), "tar")
    images = sorted(image for part in listed for image in part)
    files = [outer] if outer else sorted({root / name for name, _, _ in tars})
    numbers = {} if outer else {path.name.partition(".")[0]: number for number, path in enumerate(files)}
    spans = [(numbers.get(name.partition("/")[0], 0), start, size) for name, start, size in images]
    names = Names.of(name for name, _, _ in images)
    return Tars(root, names, stamp_of(root, files), {"spans": np.array(spans, np.int64).reshape(-1, 3)})


def _list(job: tuple[Path, int, int, str]) -> list[Member]:
    path, start, size, wnid = job
    images = archive.members(path, start, size, rf"{wnid}_\d+\.JPEG", LARGEST_IMAGE)
    count()
    return [image._replace(name=f"{wnid}/{image.name}") for image in images]


def _folder(root: Path, folders: list[str]) -> Storage:
    times: dict[str, int] = {}
    names = Names.of(sorted(name for folder in folders for name in images_below(root, times, folder)))
    return joined([Folders(root, names, {})])
