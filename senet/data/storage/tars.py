"""WebDataset shards: tars ROOT/train/*.tar or ROOT/*train*.tar with members KEY.jpg (or another image) and KEY.cls."""

import json
import os
import tarfile
from pathlib import Path

from senet.data.pixels import stored_size
from senet.data.storage.archives import Archives, Member, as_label
from senet.data.storage.folders import ENDINGS
from senet.errors import UsageError

HEAD = 64  # bytes that hold the head of a PPM
LABELS = ("cls", "label", "class_id", "class_index", "target", "class")  # as in KEY.cls, or names in a KEY.json


class Tars(Archives):
    """Images in tars. A label is a number or a name, in KEY.cls or in KEY.json."""

    patterns = ("*.tar",)
    expected = "tars of KEY.jpg and KEY.cls or KEY.json; for ImageNet's own: python -m launch.prepare imagenet"

    @classmethod
    def members(cls, path: Path) -> list[Member]:
        images: dict[str, tuple[str, int, int, tuple[int, int]]] = {}
        labels: dict[str, int | str] = {}
        described: dict[str, int | str] = {}
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    folder, _, name = member.name.rpartition("/")
                    if not member.isreg() or name.startswith("."):
                        continue
                    stem, _, ending = name.partition(".")
                    key, endings = f"{folder}/{stem}", ending.lower().split(".")
                    if f".{endings[-1]}" in ENDINGS:
                        if key in images:
                            raise ValueError(f"{images[key][0]} and {member.name} are two images of one key")
                        shape = (0, 0)
                        if endings[-1] == "ppm" and (content := archive.extractfile(member)):
                            shape = stored_size(content.read(HEAD), member.size)
                        images[key] = (member.name, member.offset_data, member.size, shape)
                    elif endings[0] in LABELS or endings[-1] == "json":
                        content = archive.extractfile(member)
                        text = os.fsdecode(content.read(1 << 20)) if content else ""
                        if endings[0] in LABELS:
                            labels[key] = _label(text)
                        elif (label := _described(text)) is not None:
                            described[key] = label
        except (tarfile.TarError, OSError, ValueError) as error:
            raise UsageError(f"{path}: not a readable shard ({error}); expected {cls.expected}") from None
        labels = labels or described
        if not images or not labels:
            return []
        if lacking := images.keys() ^ labels.keys():
            raise UsageError(f"{path}: {min(lacking).strip('/')}: an image without a label, or the reverse; mend it")
        return [Member(labels[key], *place) for key, place in images.items()]


def _label(text: str) -> int | str:
    """Return the label in a KEY.cls: a number, or the name of a class, plain or as JSON. Raises ValueError."""
    try:
        label = json.loads(text)
    except ValueError:
        label = text.strip()
    return as_label(label)


def _described(text: str) -> int | str | None:
    """Return the label in a KEY.json, if it has one. Raises ValueError."""
    facts = json.loads(text)
    if isinstance(facts, dict):
        facts = next((facts[name] for name in LABELS if name in facts), None)
    return None if facts is None or isinstance(facts, list | dict) else as_label(facts)
