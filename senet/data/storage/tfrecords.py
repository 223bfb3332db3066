"""TFRecords: files ROOT/train-00000-of-01024 (tf-slim's ImageNet) or ROOT/*train.tfrecord* (TensorFlow Datasets).

A record is a length of 8 bytes, a checksum of 4, an Example (a protocol buffer) and a checksum of 4. The files are
looked through once, without touching the bytes of the images, which are read from where they lie.
"""

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from senet.data.storage.archives import Archives, Member
from senet.data.storage.folders import ENDINGS
from senet.errors import UsageError

IMAGES = (b"image/encoded", b"image", b"jpg", b"png")
NAMES = (b"image/filename", b"file_name", b"filename")
SYNSET, ONE_BASED, LABELS = b"image/class/synset", b"image/class/label", (b"label", b"cls", b"target")


class Field(NamedTuple):
    """A field of a message: its number, and its integer or the bytes from `start` to `end`."""

    number: int
    value: int
    start: int
    end: int


class TFRecords(Archives):
    """Images in Examples. A label is tf-slim's synset, its number less one (it counts from 1), or a plain number."""

    patterns = ("*.tfrecord*", "*-?????-of-?????")
    expected = "TFRecords of Examples with image/encoded and image/class/label, or image and label"

    @classmethod
    def members(cls, path: Path) -> list[Member]:
        found: list[Member] = []
        try:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                if content[:2] == b"\x1f\x8b":
                    raise UsageError(f"{path}: is compressed; unpack it with gzip -d first")
                at = 0
                while at < len(content):
                    (size,) = struct.unpack_from("<Q", content, at)
                    if at + 16 + size > len(content):
                        raise ValueError("it ends early")
                    found.append(_example(content, at + 12, at + 12 + size, len(found)))
                    at += 16 + size
        except (OSError, ValueError, KeyError, IndexError, struct.error) as error:
            raise UsageError(f"{path}: not a readable TFRecord ({error}); expected {cls.expected}") from None
        return found


def _example(content: mmap.mmap, start: int, end: int, number: int) -> Member:
    features = {}
    for part in _fields(content, start, end):  # Example.features
        for entry in _fields(content, part.start, part.end):  # Features.feature, a map
            key, value = _fields(content, entry.start, entry.end)
            features[content[key.start : key.end]] = next(_fields(content, value.start, value.end), None)

    def first(names: tuple[bytes, ...]) -> Field | None:  # the first value of a list
        lists = (features[name] for name in names if features.get(name))
        return next((next(_fields(content, one.start, one.end), None) for one in lists if one), None)

    image = first(IMAGES)
    if image is None:
        raise ValueError(f"record {number} has no image")
    name, synset = first(NAMES), first((SYNSET,))
    label: int | str
    if synset:
        label = content[synset.start : synset.end].decode()
    elif one_based := first((ONE_BASED,)):
        label = _integer(content, one_based) - 1
    elif plain := first(LABELS):
        label = _integer(content, plain)
    else:
        raise ValueError(f"record {number} has no label")
    called = content[name.start : name.end].decode() if name and name.end > name.start else f"{number:08}"
    called = called if called.lower().endswith(ENDINGS) else f"{called}.jpg"
    return Member(label, called, image.start, image.end - image.start)


def _integer(content: mmap.mmap, field: Field) -> int:
    """Return the first of an Int64List, which is packed or not."""
    return _varint(content, field.start)[0] if field.end else field.value


def _fields(content: mmap.mmap, start: int, end: int) -> Iterator[Field]:
    at = start
    while at < end:
        tag, at = _varint(content, at)
        if tag & 7 == 2:
            size, at = _varint(content, at)
            if at + size > end:
                raise ValueError("a field that ends after its message")
            yield Field(tag >> 3, 0, at, at + size)
            at += size
        elif tag & 7 == 0:
            value, at = _varint(content, at)
            yield Field(tag >> 3, value, 0, 0)
        else:
            at += {1: 8, 5: 4}[tag & 7]


def _varint(content: mmap.mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        value, at, shift = value | (byte & 0x7F) << shift, at + 1, shift + 7
        if byte < 0x80:
            return value, at
