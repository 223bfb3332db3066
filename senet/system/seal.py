"""Zip files, as torch writes them, that end with a seal: a comment with facts about the content, and its checksum.

Content and seal are one file, which one rename puts in its place: nothing can come between them, and a file that is
moved or linked keeps its seal. To torch and every zip program it is an ordinary archive. Written from front to back, as
object stores want it. Needs the standard library only.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

END = b"PK\x05\x06"  # the record that ends a zip file: 20 bytes, the length of the comment in 2, the comment
LONGEST = 22 + 65535


class Broken(Exception):
    """A file without a seal, or with one that does not fit; the message says what is wrong."""


class Sealing:
    """A file to write a zip into; `seal` ends it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self._digest, self._last = file, hashlib.sha256(), b""

    def write(self, content: Any) -> int:
        """Write bytes, but hold back the last two of all, which say how long the comment is."""
        content = memoryview(content).cast("B")
        count = len(content)
        if count < 2:
            content = memoryview(self._last + bytes(content))
        else:
            self._put(self._last)
        self._put(content[:-2])
        self._last = bytes(content[-2:])
        return count

    def flush(self) -> None:
        self.file.flush()

    def seal(self, facts: Mapping[str, Any]) -> None:
        """Write the comment: `facts`, plain and small, and the checksum."""
        comment = json.dumps({**facts, "sha256": self._digest.hexdigest()}).encode()
        self.file.write(struct.pack("<H", len(comment)) + comment)

    def _put(self, content: bytes | memoryview) -> None:
        self.file.write(content)
        self._digest.update(content)


def facts(path: Path) -> dict[str, Any]:
    """Return the facts in the seal of a file, which is not checked. Raises Broken, and OSError if it cannot be read."""
    return _seal(path)[0]


def check(path: Path) -> dict[str, Any]:
    """Return the facts in the seal of a file whose content fits it. Raises Broken and OSError."""
    found, sealed = _seal(path)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while sealed and (chunk := file.read(min(sealed, 1 << 22))):
            digest.update(chunk)
            sealed -= len(chunk)
    if digest.hexdigest() != found["sha256"]:
        raise Broken("its bytes have changed since it was written (sha256)")
    return found


def _seal(path: Path) -> tuple[dict[str, Any], int]:
    """Return the facts, and how many bytes the checksum is of."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - LONGEST))
        _, end, rest = file.read().rpartition(END)
    length, comment = rest[16:18], rest[18:]
    try:
        found = json.loads(comment)
        whole = bool(found["sha256"]) and struct.unpack("<H", length)[0] == len(comment)
    except (ValueError, KeyError, TypeError, struct.error):
        whole = False
    if not whole:
        what = "not a whole zip file" if not end else "it has no checksum"
        raise Broken(f"{what} ({size:,} bytes): truncated or overwritten, or not written by this program")
    return found, size - len(comment) - 2
