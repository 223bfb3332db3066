"""CIFAR-10 and CIFAR-100 as published, in the python layout or the binary one, or as images in any form."""

from __future__ import annotations

import hashlib
import io
import logging
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from senet.data.philox import Ints
from senet.data.pixels import decode
from senet.data.storage.find import find, known_form, listing
from senet.data.storage.index import Index
from senet.errors import UsageError

log = logging.getLogger(__name__)
PIXELS = 3 * 32 * 32
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")  # of CIFAR-10


@dataclass(frozen=True)
class Layout:
    """One of the two forms in which a set is published."""

    archive: str
    md5: str
    folder: str
    files: dict[str, dict[str, str | None]]  # split -> its files and their MD5, if one is published
    label: bytes | int  # the key in the pickle, or how many bytes stand before the pixels, the last of them the label
    names: tuple[str, bytes | None]  # the file with the names of the classes, and the key if it is a pickle

    @property
    def all_files(self) -> list[str]:
        """The files that hold images."""
        return [name for part in self.files.values() for name in part]


# fmt: off
LAYOUTS = {
    "cifar10": (
        Layout(
            "cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a", "cifar-10-batches-py",
            {
                "train": {
                    "data_batch_1": "c99cafc152244af753f735de768cd75f",
                    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
                    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
                    "data_batch_4": "634d18415352ddfa80567beed471001a",
                    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
                },
                "test": {"test_batch": "40351d587109b95175f43aff81a1287e"},
            },
            b"labels", ("batches.meta", b"label_names"),
        ),
        Layout(
            "cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530", "cifar-10-batches-bin",
            {"train": {f"data_batch_{i}.bin": None for i in range(1, 6)}, "test": {"test_batch.bin": None}},
            1, ("batches.meta.txt", None),
        ),
    ),
    "cifar100": (
        Layout(
            "cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85", "cifar-100-python",
            {
                "train": {"train": "16019d7e3df5f24257cddd939b257f8d"},
                "test": {"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
            },
            b"fine_labels", ("meta", b"fine_label_names"),
        ),
        Layout(
            "cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8", "cifar-100-binary",
            {"train": {"train.bin": None}, "test": {"test.bin": None}},
            2, ("fine_label_names.txt", None),
        ),
    ),
}
# fmt: on


def read(root: Path, name: str, split: str, checksum: bool = True) -> tuple[NDArray[np.uint8], Ints]:
    """Return the pixels, uint8 [N, 32, 32, 3], and labels, int64 [N], of a split, train or test.

    Raises UsageError for a missing folder or file, a wrong checksum, a wrong size, or a pickle with anything but arrays
    in it.
    """
    part = "train" if split == "train" else "val"
    if (located := _locate(root, name, split)) is None and root.is_dir() and known_form(root, part):
        return _read_images(find(root, part, _classes(name)))
    if located is None:
        wanted = " or ".join(layout.folder + "/" for layout in LAYOUTS[name])
        raise UsageError(f"--data {root}: neither {wanted} in it; run: python -m launch.prepare {name} {root}")
    layout, folder = located
    files = layout.files[split]
    parts = [_read_file(folder / file, md5 if checksum else None, layout) for file, md5 in files.items()]
    if not checksum:
        log.warning("%s: checksums not verified (--no-checksum)", folder)
    planes = np.concatenate([p for p, _ in parts]).reshape(-1, 3, 32, 32)
    pixels = np.empty((len(planes), 32, 32, 3), np.uint8)
    for channel in range(3):  # a fifth of the time that a transposed copy takes
        pixels[..., channel] = planes[:, channel]
    labels = np.concatenate([y for _, y in parts]).astype(np.int64)
    if len(labels) != len(pixels) or not len(labels) or labels.min() < 0 or labels.max() >= _classes(name):
        raise UsageError(f"{folder}: {split}: labels and images do not fit together; unpack the archive again")
    return pixels, labels


def class_names(root: Path, name: str) -> tuple[str, ...]:
    """Return the names of the classes by label, from the archive or, of CIFAR-10, from memory; none if CIFAR-100's are
    missing. Raises UsageError for a damaged list.
    """
    for layout in LAYOUTS[name]:
        file, key = layout.names
        for path in (root / layout.folder / file, root / file):
            if path.is_file():
                return _read_names(path, key, _classes(name))
    if _locate(root, name, "train") is None and root.is_dir() and known_form(root, "train"):
        return listing(root, "train").classes
    return CLASSES if name == "cifar10" else ()


def _classes(name: str) -> int:
    return int(name.removeprefix("cifar"))


def _locate(root: Path, name: str, split: str) -> tuple[Layout, Path] | None:
    for layout in LAYOUTS[name]:
        for folder in (root / layout.folder, root):
            if (folder / next(iter(layout.files[split]))).is_file():
                return layout, folder
    return None


def _read_images(index: Index) -> tuple[NDArray[np.uint8], Ints]:
    pixels = np.empty((len(index), 32, 32, 3), np.uint8)
    for image in range(len(index)):
        try:
            decoded = decode(index.storage.read(image))
            if decoded.size != (32, 32):
                raise ValueError(f"{decoded.width} x {decoded.height} pixels")
        except (OSError, ValueError, SyntaxError) as error:
            raise UsageError(f"{index.storage.path(image)}: no image of CIFAR ({error}); mend the set") from None
        pixels[image] = np.asarray(decoded)
    return pixels, index.labels


def _read_file(path: Path, md5: str | None, layout: Layout) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); unpack the archive again") from None
    if md5 is not None and (own := hashlib.md5(content, usedforsecurity=False).hexdigest()) != md5:
        raise UsageError(
            f"{path}: checksum {own} instead of {md5}: damaged or changed; unpack it again, or say --no-checksum"
        )
    if isinstance(layout.label, bytes):
        try:
            batch = _unpickle(content)
            pixels, labels = np.asarray(batch[b"data"], np.uint8), np.asarray(batch[layout.label])
        except Exception as error:
            raise UsageError(f"{path}: not a CIFAR batch: {error}") from None
        return pixels.reshape(-1, PIXELS), labels
    record = layout.label + PIXELS
    if not content or len(content) % record:
        raise UsageError(
            f"{path}: {len(content)} bytes are not whole records of {record}: truncated; unpack the archive again"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, record)
    return records[:, layout.label :], records[:, layout.label - 1]


def _read_names(path: Path, key: bytes | None, count: int) -> tuple[str, ...]:
    try:
        content = path.read_bytes()
        names = content.decode().split() if key is None else [part.decode() for part in _unpickle(content)[key]]
    except Exception as error:
        raise UsageError(f"{path}: no list of class names ({error}); unpack the archive again") from None
    if len(set(names)) != count or len(names) != count or not all(re.fullmatch(r"\w[\w-]*", part) for part in names):
        raise UsageError(f"{path}: not {count} names of classes; unpack the archive again")
    return tuple(names)


def _unpickle(content: bytes) -> Any:
    return _Plain(io.BytesIO(content), encoding="bytes").load()


class _Plain(pickle.Unpickler):
    """Admits what a pickled numpy array is made of, and plain containers: a pickle can otherwise run any code."""

    ALLOWED = frozenset(
        (module, name)
        for package in ("numpy.core", "numpy._core")
        for module, name in (
            (f"{package}.multiarray", "_reconstruct"),
            (f"{package}.multiarray", "scalar"),
            (f"{package}.numeric", "_frombuffer"),
        )
    ) | {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(
                f"its pickle asks for {module}.{name}, which is no array or plain container; do not trust this file"
            )
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)
