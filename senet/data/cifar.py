"""CIFAR-10 and CIFAR-100 from their standard archives, extracted: the python layout or the binary one."""

from __future__ import annotations

import hashlib
import io
import logging
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from senet.data.philox import Ints
from senet.errors import UsageError

log = logging.getLogger(__name__)
PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Layout:
    folder: str
    files: dict[str, tuple[tuple[str, str | None], ...]]  # split -> files and their MD5, where one is published
    label: bytes | int  # key in the pickle, or how many label bytes stand before the pixels
    classes: int


LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "cifar10": (
        Layout(
            "cifar-10-batches-py",
            {
                "train": (
                    ("data_batch_1", "c99cafc152244af753f735de768cd75f"),
                    ("data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec"),
                    ("data_batch_3", "54ebc095f3ab1f0389bbae665268c751"),
                    ("data_batch_4", "634d18415352ddfa80567beed471001a"),
                    ("data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb"),
                ),
                "test": (("test_batch", "40351d587109b95175f43aff81a1287e"),),
            },
            b"labels",
            10,
        ),
        Layout(
            "cifar-10-batches-bin",
            {"train": tuple((f"data_batch_{i}.bin", None) for i in range(1, 6)), "test": (("test_batch.bin", None),)},
            1,
            10,
        ),
    ),
    "cifar100": (
        Layout(
            "cifar-100-python",
            {
                "train": (("train", "16019d7e3df5f24257cddd939b257f8d"),),
                "test": (("test", "f0ef6b0ae62326f3e7ffdfab6717acfc"),),
            },
            b"fine_labels",
            100,
        ),
        Layout("cifar-100-binary", {"train": (("train.bin", None),), "test": (("test.bin", None),)}, 2, 100),
    ),
}


def read(root: Path, name: str, split: str, checksum: bool = True) -> tuple[NDArray[np.uint8], Ints]:
    """(uint8 [N, 32, 32, 3], int64 [N]) of a split, train or test.

    Raises UsageError for a missing folder or file, a wrong checksum, a wrong size, or a pickle with anything but arrays
    in it.
    """
    layouts = LAYOUTS[name]
    for layout in layouts:
        folder = next((f for f in (root / layout.folder, root) if (f / layout.files[split][0][0]).is_file()), None)
        if folder is not None:
            break
    else:
        wanted = " or ".join(layout.folder + "/" for layout in layouts)
        raise UsageError(f"--data {root}: neither {wanted} in it; run: python -m launch.prepare {name} {root}")
    parts = [_read_file(folder / file, md5 if checksum else None, layout) for file, md5 in layout.files[split]]
    if not checksum:
        log.warning("%s: checksums not verified (--no-checksum)", folder)
    pixels = np.concatenate([p for p, _ in parts]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    labels = np.concatenate([y for _, y in parts]).astype(np.int64)
    if len(labels) != len(pixels) or not len(labels) or labels.min() < 0 or labels.max() >= layout.classes:
        raise UsageError(f"{folder}: {split}: labels and images do not fit together; unpack the archive again")
    return np.ascontiguousarray(pixels), labels


def _read_file(path: Path, md5: str | None, layout: Layout) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); unpack the archive again") from None
    if md5 is not None and (found := hashlib.md5(content, usedforsecurity=False).hexdigest()) != md5:
        raise UsageError(
            f"{path}: checksum {found} instead of {md5}: damaged or changed; unpack it again, or say --no-checksum"
        )
    if isinstance(layout.label, bytes):
        try:
            batch = Plain(io.BytesIO(content), encoding="bytes").load()
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


class Plain(pickle.Unpickler):
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
