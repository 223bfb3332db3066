"""The classes of the ILSVRC2012 devkit: data/meta.mat, a MATLAB 5 file, of which just the numbers and names of the
synsets are read.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from math import prod
from pathlib import Path

from senet.errors import UsageError

LARGEST = 64 << 20  # bytes, also when decompressed; the real one has 0.2 MB
COMPRESSED, MATRIX = 15, 14  # types of elements
STRUCT, CHAR = 2, 4  # classes of matrices
NUMBERS = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "f", 9: "d", 12: "q", 13: "Q"}
ENCODINGS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16"}
Element = tuple[int, memoryview]


def read(path: Path) -> dict[int, str]:
    """The wnid of each ILSVRC2012_ID. Raises UsageError for anything that is not the devkit's file."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise ValueError(f"more than {LARGEST} bytes")
        return _synsets(memoryview(content))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); unpack the devkit again") from None
    except (ValueError, struct.error, zlib.error) as error:
        raise UsageError(
            f"{path}: not the meta.mat of an ILSVRC2012 devkit ({error}); fetch the devkit again"
        ) from None


def _synsets(content: memoryview) -> dict[int, str]:
    order = {b"IM": "<", b"MI": ">"}.get(bytes(content[126:128]))
    if order is None:
        raise ValueError("no MATLAB 5 file")
    for kind, payload in _elements(content[128:], order):
        if kind == COMPRESSED:
            unpacker = zlib.decompressobj()
            payload = memoryview(unpacker.decompress(payload, LARGEST))
            if not unpacker.eof:
                raise ValueError("a compressed part that ends early or is too large")
            kind, payload = _next(_elements(payload, order))
        if kind == MATRIX:
            parts = _elements(payload, order)
            sort, size, name = _head(parts, order)
            if (sort, name) == (STRUCT, "synsets"):
                return _table(parts, size, order)
    raise ValueError("no struct array 'synsets' in it")


def _table(parts: Iterator[Element], size: int, order: str) -> dict[int, str]:
    (width,) = struct.unpack_from(f"{order}i", _next(parts)[1])
    names = bytes(_next(parts)[1])
    if width < 1 or len(names) % width or len(names) > 4096:
        raise ValueError("damaged field names")
    fields = [names[start : start + width].split(b"\0")[0].decode("latin-1") for start in range(0, len(names), width)]
    if not {"ILSVRC2012_ID", "WNID"} <= set(fields):
        raise ValueError("synsets without ILSVRC2012_ID and WNID")
    found: dict[int, str] = {}
    for _ in range(size):
        row = dict(zip(fields, [_next(parts) for _ in fields], strict=True))
        number, wnid = (_value(*row[field], order) for field in ("ILSVRC2012_ID", "WNID"))
        if not isinstance(wnid, str) or not re.fullmatch(r"n\d{8}", wnid) or number not in range(1, 10_000):
            raise ValueError(f"a synset of number {number!r} and WNID {wnid!r}")
        if found.setdefault(int(number), wnid) != wnid:
            raise ValueError(f"two synsets of number {int(number)}")
    return found


def _next(parts: Iterator[Element]) -> Element:
    for part in parts:
        return part
    raise ValueError("it ends early")


def _elements(data: memoryview, order: str) -> Iterator[Element]:
    """(type, payload) of what stands one after the other in `data`."""
    place = 0
    while place < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, place)
        start = place + 8
        if kind >> 16:  # up to four bytes stand in the tag itself
            kind, size, start = kind & 0xFFFF, kind >> 16, place + 4
        payload = data[start : start + size]
        if len(payload) != size or (start == place + 4 and size > 4):
            raise ValueError("it ends early")
        yield kind, payload
        place = start + size + (0 if kind == COMPRESSED else -(start + size) % 8)


def _head(parts: Iterator[Element], order: str) -> tuple[int, int, str]:
    """(class, elements, name) of a matrix."""
    (flags,) = struct.unpack_from(f"{order}I", _next(parts)[1])
    dimensions = _next(parts)[1]
    size = prod(struct.unpack(f"{order}{len(dimensions) // 4}i", dimensions))
    return flags & 0xFF, size, bytes(_next(parts)[1]).decode("latin-1")


def _value(kind: int, payload: memoryview, order: str) -> str | float:
    """The text or the one number in a matrix."""
    if kind != MATRIX:
        raise ValueError("a field that is no matrix")
    parts = _elements(payload, order)
    sort, size, _ = _head(parts, order)
    stored, content = _next(parts)
    if sort == CHAR:
        encoding = ENCODINGS.get(stored, "utf-8")
        return bytes(content).decode(encoding + {"<": "-le", ">": "-be"}[order] if encoding == "utf-16" else encoding)
    if size != 1 or stored not in NUMBERS:
        raise ValueError("a field that is neither text nor a number")
    number: float = struct.unpack_from(order + NUMBERS[stored], content)[0]
    return number
