"""CIFAR as image folders: OUT/train/CLASS/00001.png and OUT/val/CLASS/..., numbered as in the archive."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from senet.data.cifar import LAYOUTS, class_names, read
from senet.data.philox import Ints
from senet.data.storage.folders import Folders
from senet.data.storage.index import Index, Names
from senet.errors import UsageError
from senet.prepare.folders import appearing, fill
from senet.prepare.plan import is_complete, record
from senet.prepare.pool import count

Job = tuple[Path, list[str], NDArray[np.uint8]]


def export(name: str, folder: Path, to: Path, checksum: bool = True, processes: int | None = None) -> list[str]:
    """Write `name`, cifar10 or cifar100, prepared in `folder`, as PNGs below `to`; returns what was done, a sentence
    for each split.

    What is there is kept, and an interrupted call completed by the next. Raises UsageError for a damaged set, and if
    something else is in `to`.
    """
    classes, notes = class_names(folder, name), []
    if not classes:
        lacking = ", ".join(f"{layout.folder}/{layout.names[0]}" for layout in LAYOUTS[name])
        raise UsageError(f"{folder}: has none of {lacking}: no names of classes; unpack the archive again")
    for split, theirs in (("train", "train"), ("val", "test")):
        pixels, labels = read(folder, name, theirs, checksum)
        content = hashlib.sha256(pixels.tobytes()).hexdigest()[:16]
        order = np.argsort(labels, kind="stable")
        pixels, labels = pixels[order], labels[order]
        names = Names.of(f"{classes[label]}/{number + 1:05}.png" for label, number in zip(labels, order, strict=True))
        index = Index(Folders(to / split, names, {}), labels, classes)
        plan = {"form": "png", "set": name, "content": content, "fingerprint": index.fingerprint}
        if is_complete(to, split, plan):
            notes.append(f"{to / split}: {len(index)} images are there already")
            continue

        def job(folder: Path, images: Ints, names: Names = names, pixels: NDArray[np.uint8] = pixels) -> Job:
            return folder, [Path(names[image]).name for image in images], pixels[images]

        try:
            record(to, split, plan)
            fill(index, to, split, job, _write, processes)
            record(to, split, plan, complete=True)
        except OSError as error:
            raise UsageError(f"{to}: cannot be written: {error.strerror or error}") from None
        notes.append(f"{to / split}: {len(index)} images of {len(classes)} classes")
    return notes


def _write(job: Job) -> None:
    folder, files, pixels = job
    with appearing(folder) as part:
        for file, image in zip(files, pixels, strict=True):
            Image.fromarray(image).save(part / file)
            count()
