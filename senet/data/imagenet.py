"""ImageNet's 1,000 classes: their wnids in order of label, and what people call them."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=1)
def classes() -> dict[str, str]:
    """Return the classes in order of label: wnid -> name, as n01440764 -> tench."""
    listed = json.loads(Path(__file__).with_name("imagenet_class_index.json").read_text())
    return dict(listed[str(label)] for label in range(len(listed)))


def readable(name: str) -> str:
    """Return what people call a class: of a wnid its name, otherwise the name itself."""
    return classes().get(name, name)


def named(classes: Sequence[str], count: int) -> tuple[str, ...]:
    """Return what people call `count` classes by label: their numbers if the data set has no names for them."""
    return tuple(readable(name) for name in classes) or tuple(str(label) for label in range(count))


def comparable(name: str) -> str:
    """Return what is the same for a class whoever names it: n01440764, tench, or "tench, Tinca tinca"."""
    return unicodedata.normalize("NFC", readable(name).partition(",")[0].replace("_", " ").strip().lower())
