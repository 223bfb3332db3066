"""CIFAR as image folders: OUT/train/CLASS/00001.png and OUT/val/CLASS/..., numbered as in the archive."""

import hashlib
import io
from pathlib import Path

import numpy as np
from PIL import Image

from senet.data.cifar import LAYOUTS, class_names, read
from senet.data.philox import Ints
from senet.data.storage.index import Index, Names, Storage
from senet.errors import UsageError
from senet.prepare.convert import write
from senet.prepare.encoding import Encoding


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
        names = Names.of(f"{classes[label]}/{number:05}.png" for number, label in enumerate(labels, start=1))
        index = Index(Pixels(to / split, names, {}, {"pixels": pixels}), labels, classes).sorted()
        facts = {"form": "png", "set": name, "content": content}
        notes.append(write(index, to, split, Encoding(), facts, processes))
    return notes


class Pixels(Storage):
    """Images in memory, `pixels` [n, H, W, 3], as PNG files."""

    def read(self, image: int) -> bytes:
        file = io.BytesIO()
        Image.fromarray(self.columns["pixels"][image]).save(file, "PNG")
        return file.getvalue()

    def sizes(self) -> Ints:
        return np.full(len(self.names), self.columns["pixels"][0].nbytes, np.int64)  # at most
