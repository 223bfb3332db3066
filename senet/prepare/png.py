"""CIFAR as image folders: OUT/train/CLASS/00001.png and OUT/val/CLASS/..., where a file is called after its place in
the archive.
"""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from senet.data.cifar import Plain, read
from senet.data.storage.index import Index, Names
from senet.errors import UsageError
from senet.prepare.writing import appearing, begin, fill, mark

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
META = {
    "cifar10": (("cifar-10-batches-py/batches.meta", b"label_names"), ("cifar-10-batches-bin/batches.meta.txt", None)),
    "cifar100": (("cifar-100-python/meta", b"fine_label_names"), ("cifar-100-binary/fine_label_names.txt", None)),
}
Job = tuple[Path, list[str], NDArray[np.uint8]]


def export(name: str, folder: Path, to: Path, checksum: bool = True, processes: int | None = None) -> list[str]:
    """Write `name`, cifar10 or cifar100, prepared in `folder`, as PNGs below `to`; returns what was done, a sentence
    for each split.

    What is there is kept, and an interrupted call completed by the next. Raises UsageError for a damaged set, and where
    something else is in `to`.
    """
    classes = class_names(folder, name)
    notes = []
    for split, theirs in (("train", "train"), ("val", "test")):
        pixels, labels = read(folder, name, theirs, checksum)
        order = np.argsort(labels, kind="stable")
        files = [f"{split}/{classes[labels[image]]}/{image + 1:05}.png" for image in order]
        index = Index(to, Names.of(files), labels[order], classes)
        content = hashlib.sha256(pixels.tobytes()).hexdigest()[:16]
        plan = {"form": "png", "set": name, "content": content, "fingerprint": index.fingerprint}
        if begin(to, split, plan):
            notes.append(f"{to / split}: {len(index)} images are there already")
            continue

        def job(
            folder: Path, images: NDArray[np.int64], files: list[str] = files, pixels: NDArray[np.uint8] = pixels[order]
        ) -> Job:
            return folder, [files[image].rpartition("/")[2] for image in images], pixels[images]

        try:
            mark(to, split, plan)
            fill(index, to, split, job, _write, processes)
            mark(to, split, plan, complete=True)
        except OSError as error:
            raise UsageError(f"{to}: cannot be written: {error.strerror or error}") from None
        notes.append(f"{to / split}: {len(index)} images of {len(classes)} classes")
    return notes


def class_names(folder: Path, name: str) -> tuple[str, ...]:
    """By label, from the archive; CIFAR-10's are known where that lacks them. Raises UsageError for
    CIFAR-100 without.
    """
    for file, field in META[name]:
        for path in (folder / file, folder / Path(file).name):
            if path.is_file():
                return _read_names(path, field, int(name.removeprefix("cifar")))
    if name == "cifar10":
        return CLASSES
    raise UsageError(
        f"{folder}: has none of {', '.join(file for file, _ in META[name])}: no names of classes; "
        "unpack the archive again"
    )


def _read_names(path: Path, field: bytes | None, count: int) -> tuple[str, ...]:
    try:
        if field is None:
            names = path.read_text().split()
        else:
            names = [part.decode() for part in Plain(io.BytesIO(path.read_bytes()), encoding="bytes").load()[field]]
    except Exception as error:
        raise UsageError(f"{path}: no list of class names ({error}); unpack the archive again") from None
    if len(set(names)) != count or len(names) != count or not all(re.fullmatch(r"\w[\w-]*", part) for part in names):
        raise UsageError(f"{path}: not {count} names of classes; unpack the archive again")
    return tuple(names)


def _write(job: Job) -> int:
    folder, files, pixels = job
    with appearing(folder) as part:
        for file, image in zip(files, pixels, strict=True):
            Image.fromarray(image).save(part / file)
    return len(files)
