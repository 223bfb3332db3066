"""WebDataset shards: tars ROOT/train/*.tar or ROOT/*train*.tar with members KEY.jpg (or another image) and KEY.cls."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

from senet.data.pixels import stored_size
from senet.data.storage.archives import Archives, Member
from senet.data.storage.folders import ENDINGS
from senet.errors import UsageError

HEAD = 64  # bytes that hold the head of a PPM
LABELS = ("label", "cls", "class_id", "class_index", "target", "class")  # what the label is called in a KEY.json


class Tars(Archives):
    """Images in tars. A label is a number in KEY.cls, or a number or a name in KEY.json."""

    patterns = ("*.tar",)
    expected = (
        "tars of KEY.jpg and KEY.cls or KEY.json; ImageNet's own are prepared by: python -m launch.prepare imagenet"
    )

    @classmethod
    def members(cls, path: Path) -> list[Member]:
        images: dict[str, tuple[str, int, int, tuple[int, int]]] = {}
        labels: dict[str, int | str] = {}
        described: dict[str, int | str] = {}
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    folder, _, name = member.name.rpartition("/")
                    stem, _, ending = name.partition(".")
                    key = f"{folder}/{stem}"
                    if not member.isreg():
                        continue
                    if "." + ending.lower() in ENDINGS:
                        shape = (0, 0)
                        if ending.lower() == "ppm" and (content := archive.extractfile(member)):
                            shape = stored_size(content.read(HEAD), member.size)
                        images[key] = (member.name, member.offset_data, member.size, shape)
                    elif ending in ("cls", "json"):
                        content = archive.extractfile(member)
                        text = content.read(1 << 20) if content else b""
                        if ending == "cls":
                            labels[key] = int(text)
                        elif (label := _described(text)) is not None:
                            described[key] = label
        except (tarfile.TarError, OSError, ValueError) as error:
            raise UsageError(f"{path}: not a readable shard ({error}); expected {cls.expected}") from None
        labels = labels or described
        if not images or not labels:
            return []
        if lacking := images.keys() ^ labels.keys():
            raise UsageError(
                f"{path}: {min(lacking).strip('/')}: an image without a label, or the other way round; mend the shard"
            )
        return [Member(labels[key], *place) for key, place in images.items()]


def _described(text: bytes) -> int | str | None:
    """Return the label in a KEY.json, if it has one."""
    facts = json.loads(text)
    label = next((facts[name] for name in LABELS if name in facts), None) if isinstance(facts, dict) else None
    return int(label) if isinstance(label, str) and label.isdecimal() else label
