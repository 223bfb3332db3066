"""ImageNet (ILSVRC2012) from the archives as published: into folders of classes, or straight into shards.

The archives are not unpacked first: the tars within the training tar are listed where they lie, and images read from
there.

A label is the place of a class's wnid (n01440764) among the sorted wnids, as everywhere in PyTorch. The devkit and
Caffe number the classes otherwise; numbers from there are translated here by way of the wnids, and nowhere else met.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from senet.data.storage.index import Index, Names, key, read_classes
from senet.errors import UsageError
from senet.prepare import archive, meta
from senet.prepare.shards import Packing, write_shards
from senet.prepare.writing import Encoding, begin, each, mark, progress, put, write_folders

IMAGES = {"train": 1_281_167, "val": 50_000}
LARGEST_IMAGE = 64 << 20  # bytes; the largest of the real ones has 16 MB
LARGEST_CLASS = 4 << 30
LARGEST_DEVKIT = 64 << 20
VAL = "ILSVRC2012_val_{:08}"
log = logging.getLogger(__name__)
Found = list[tuple[str, int, int]]  # name, first byte, bytes


@dataclass(frozen=True)
class Sources:
    """Either tar alone will do; validation labels come from the devkit (.tar.gz or folder) or from a list."""

    train: Path | None = None
    val: Path | None = None
    devkit: Path | None = None
    labels: Path | None = None

    def __post_init__(self) -> None:
        if self.train is None and self.val is None:
            raise UsageError("nothing to prepare: give --train-tar, --val-tar or both")
        if self.val is not None and (self.devkit is None) == (self.labels is None):
            raise UsageError("--val-tar has no labels in it: give either --devkit or --val-labels")
        if self.val is None and (self.devkit or self.labels):
            raise UsageError("--devkit and --val-labels are of no use without --val-tar")
        for path in (self.train, self.val, self.devkit, self.labels):
            if path is not None and not path.exists():
                raise UsageError(f"{path}: no such file")

    @property
    def tars(self) -> dict[str, Path]:
        return {split: path for split, path in (("train", self.train), ("val", self.val)) if path is not None}


def classes() -> dict[str, str]:
    """The 1,000 classes in order of label: wnid -> what people call it."""
    listed = json.loads(Path(__file__).with_name("imagenet_class_index.json").read_text())
    return dict(listed[str(label)] for label in range(len(listed)))


def prepare(
    folder: Path, sources: Sources, output: Packing | Encoding, partial: bool = False, processes: int | None = None
) -> list[str]:
    """Write `folder`/train/WNID/*.JPEG and val likewise, or shards for a Packing; returns what was done, a sentence for
    each split.

    What is there is kept, and an interrupted call completed by the next. Raises UsageError for archives that are not
    the published ones by what they hold (a warning if `partial`), or not safe, for labels that do not fit, and where
    something else is in `folder`.
    """
    answers = _answers(sources)
    plans = {split: _plan(split, path, output, answers) for split, path in sources.tars.items()}
    pending = [split for split in plans if not begin(folder, split, plans[split])]
    notes = [f"{folder / split}: all images are there already" for split in plans if split not in pending]
    if not pending:
        return notes
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lists = {
            split: _survey(path, folder / f".{split}-tar.npz", split, processes) for split, path in sources.tars.items()
        }
        for split, index in _labelled(folder, lists, sources.tars, answers, partial).items():
            if split not in pending:
                continue
            plan = plans[split] | {"fingerprint": index.fingerprint}
            begin(folder, split, plan)
            mark(folder, split, plan)
            put(folder / "classes.txt", "".join(f"{name}\n" for name in index.classes).encode())
            if isinstance(output, Packing):
                write_shards(index, folder, split, output, processes)
            else:
                write_folders(index, folder, split, output, processes)
            mark(folder, split, plan, complete=True)
            notes.append(f"{folder / split}: {len(index)} images of {len(index.classes)} classes")
        for split in lists:
            (folder / f".{split}-tar.npz").unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written: {error.strerror or error}") from None
    return notes


def _plan(split: str, tar: Path, output: Packing | Encoding, answers: Mapping[str, str]) -> dict[str, Any]:
    plan = {"tar_bytes": tar.stat().st_size} | (
        output.plan if isinstance(output, Packing) else {"form": "folders", **output.plan}
    )
    if split == "val":
        plan["labels"] = hashlib.sha256(json.dumps(answers, sort_keys=True).encode()).hexdigest()[:16]
    return plan


def _labelled(
    folder: Path, lists: Mapping[str, Index], tars: Mapping[str, Path], answers: Mapping[str, str], partial: bool
) -> dict[str, Index]:
    """The images of each tar with their labels, in order of label and name."""

    def doubt(problem: str) -> None:
        if not partial:
            raise UsageError(f"{problem}; fetch it again, or pass --partial to take what is there")
        log.warning("%s", problem)

    wnids = {split: _wnids(index, split, tars[split], answers) for split, index in lists.items()}
    for split, found in wnids.items():
        if len(found) != IMAGES[split] or set(found) != set(classes()):
            doubt(
                f"{tars[split]}: {len(found):,} images of {len(set(found)):,} classes, not the {IMAGES[split]:,} "
                "of 1,000 of ILSVRC2012"
            )
        if split == "val" and len(answers) != len(found):
            doubt(f"{tars[split]}: {len(found):,} images, but labels for {len(answers):,}")
    before = read_classes(folder)
    common = set.intersection(*map(set, wnids.values()), *([set(before)] if before else []))
    if not common or (before and common != set(before)):
        raise UsageError(
            f"{folder}: the archives lack classes that are to be there; prepare train and val in one "
            "run, in another folder"
        )
    for split, found in wnids.items():
        if surplus := sorted(set(found) - common):
            doubt(
                f"{tars[split]}: {len(surplus):,} classes that the rest lacks are left out: "
                f"{', '.join(surplus[:3])} ..."
            )
    names = tuple(sorted(common))
    return {split: _ordered(index, split, wnids[split], names) for split, index in lists.items()}


def _wnids(index: Index, split: str, tar: Path, answers: Mapping[str, str]) -> list[str]:
    if split == "train":
        return [name.partition("_")[0] for name in index.names]
    try:
        return [answers[name.partition(".")[0]] for name in index.names]
    except KeyError as error:
        raise UsageError(
            f"{tar}: {error.args[0]} has no label in --devkit or --val-labels; give the one that belongs to it"
        ) from None


def _ordered(index: Index, split: str, wnids: list[str], names: tuple[str, ...]) -> Index:
    labels = {name: label for label, name in enumerate(names)}
    images = [
        (labels[wnid], f"{split}/{wnid}/{name}", i)
        for i, (wnid, name) in enumerate(zip(wnids, index.names, strict=True))
        if wnid in labels
    ]
    images.sort(key=lambda image: (image[0], key(image[1])))
    chosen = index.subset(np.array([i for _, _, i in images], np.int64))
    return Index(
        index.root,
        Names.of(name for _, name, _ in images),
        np.array([label for label, _, _ in images], np.int64),
        names,
        index.archives,
        chosen.places,
    )


def _survey(tar: Path, saved: Path, split: str, processes: int | None) -> Index:
    """What is where in a tar of images, without labels, from the list in `saved` where that is up to date."""
    state = tar.stat()
    stamp = {"bytes": state.st_size, "modified_ns": state.st_mtime_ns}
    if (index := Index.load(tar.parent, saved, stamp)) is not None:
        return index
    if split == "train":
        inner = _members(tar, 0, state.st_size, r"n\d{8}\.tar", LARGEST_CLASS)
        jobs = [
            (tar, start, size, rf"{name.partition('.')[0]}_\d+\.JPEG", LARGEST_IMAGE) for name, start, size in inner
        ]
    else:
        jobs = [(tar, 0, state.st_size, r"ILSVRC2012_val_\d{8}\.JPEG", LARGEST_IMAGE)]
    found: Found = []
    with progress(f"listing {split}", len(jobs), "tar") as bar:
        for images in each(_list, jobs, processes if len(jobs) > 1 else 1):
            found += images
            bar.update()
    found.sort()
    places = np.array([(0, start, size) for _, start, size in found], np.int64).reshape(-1, 3)
    index = Index(
        tar.parent, Names.of(name for name, _, _ in found), np.zeros(len(found), np.int64), (), (tar.name,), places
    )
    index.save(saved, stamp)
    return index


def _list(job: tuple[Path, int, int, str, int]) -> Found:
    return _members(*job)


def _members(tar: Path, start: int, size: int, pattern: str, largest: int) -> Found:
    """The files in the tar that lies at `start` of the file `tar`. Raises UsageError for all that does not belong
    there.
    """
    found: dict[str, tuple[str, int, int]] = {}
    with _opened(tar, start, size) as (window, inside):
        for member in inside:
            name = archive.checked(tar, member).name
            if member.isdir():
                continue
            if not re.fullmatch(pattern, name):
                raise UsageError(
                    f"{tar}: {member.name!r} does not belong there (expected {pattern}); name the tar as published"
                )
            if not 0 < member.size <= largest or member.issparse():
                raise UsageError(
                    f"{tar}: refused: {member.name!r} has {member.size} bytes, and 1 to {largest} are sensible"
                )
            if name in found:
                raise UsageError(f"{tar}: holds {name!r} twice; fetch it again")
            found[name] = name, start + member.offset_data, member.size
        # tarfile takes a damaged header for the end.
        window.seek(inside.offset)
        if any(window.read(tarfile.BLOCKSIZE)):
            raise tarfile.ReadError(f"damaged at byte {start + inside.offset}")
    return list(found.values())


@contextmanager
def _opened(tar: Path, start: int, size: int) -> Iterator[tuple[_Window, tarfile.TarFile]]:
    try:
        with _Window(tar, start, size) as window, tarfile.open(fileobj=window, mode="r:") as inside:
            yield window, inside
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UsageError(f"{tar}: not a tar archive, or a damaged one ({error}); fetch it again") from None


class _Window(io.RawIOBase):
    """A part of a file as a file of its own."""

    def __init__(self, path: Path, start: int, size: int) -> None:
        self.file, self.start, self.size, self.place = path.open("rb", buffering=0), start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.place, os.SEEK_END: self.size}[whence]
        return self.place

    def tell(self) -> int:
        return self.place

    def readinto(self, buffer: Any) -> int:
        content = os.pread(
            self.file.fileno(), max(0, min(len(buffer), self.size - self.place)), self.start + self.place
        )
        buffer[: len(content)] = content
        self.place += len(content)
        return len(content)

    def close(self) -> None:
        self.file.close()
        super().close()


def _answers(sources: Sources) -> dict[str, str]:
    """The wnid of each validation image, by its name without ending."""
    if sources.labels is not None:
        return _listed_answers(sources.labels)
    if sources.devkit is None:
        return {}
    if sources.devkit.is_dir():
        return _devkit_answers(sources.devkit, sources.devkit)
    with tempfile.TemporaryDirectory() as temporary:
        archive.extract(sources.devkit, Path(temporary), LARGEST_DEVKIT, 2 * LARGEST_DEVKIT)
        return _devkit_answers(sources.devkit, Path(temporary))


def _devkit_answers(devkit: Path, unpacked: Path) -> dict[str, str]:
    data = next((path.parent for path in sorted(unpacked.glob("**/data/meta.mat"))), None)
    if data is None:
        raise UsageError(f"{devkit}: no data/meta.mat in it; --devkit is ILSVRC2012_devkit_t12.tar.gz, or its folder")
    wnids = meta.read(data / "meta.mat")
    file = data / "ILSVRC2012_validation_ground_truth.txt"
    try:
        return {VAL.format(n): wnids[int(line)] for n, line in enumerate(_lines(file), 1)}
    except (ValueError, KeyError) as error:
        raise UsageError(f"{devkit}: {file.name}: {error} is no class of meta.mat; fetch the devkit again") from None


def _listed_answers(file: Path) -> dict[str, str]:
    """A wnid per line in order of the images' names, or lines of FILENAME WNID."""
    found: dict[str, str] = {}
    for number, line in enumerate(_lines(file), 1):
        *name, wnid = line.split() or [""]
        if not re.fullmatch(r"n\d{8}", wnid) or len(name) > 1:
            raise UsageError(f"{file}: line {number}: {line[:40]!r} is neither a wnid nor FILENAME WNID")
        found[Path(name[0]).stem if name else VAL.format(number)] = wnid
    return found


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().rstrip("\n").split("\n")
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}: cannot be read ({error}); give the file as published") from None
