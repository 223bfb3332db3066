"""What an audit finds in an image file, and what it says of a split's findings together."""

import hashlib
import re
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from senet.data.pixels import ORIENTATION, decode, head, kind, opened
from senet.data.storage.index import Index

TRAITS = (
    "truncated", "empty", "cmyk", "sixteen_bit", "exif_rotated", "tiny", "misnamed", "decoded_differently",
    "grey", "palette", "alpha",
)  # fmt: skip
COUNTED = ("grey", "palette", "alpha")  # traits that are usual: counted, not listed
FINDING = np.dtype([("height", "i4"), ("width", "i4"), ("kind", "u1"), ("digest", "S16"), *((t, "?") for t in TRAITS)])
KINDS = ("unknown", "empty", "jpeg", "png", "gif", "webp", "bmp", "tiff", "ppm")
TINY = 32  # pixels of the shorter side
SIDES = (1, 32, 64, 128, 224, 256, 384, 512, 1024)  # where the bins of the shorter side begin
LISTED = 1000  # names, at most, of each sort of finding


def examine(content: bytes, name: str) -> tuple[Any, str, NDArray[np.uint8] | None]:
    """Return the finding of an image file, why it cannot be decoded (nothing if it can), and its pixels if it can."""
    form = kind(content)
    traits = {"empty": not content}
    height, width, reason, pixels = 0, 0, "", None
    try:
        height, width, _ = head(content)
        with opened(content) as image:
            traits |= _look(image, content)
        pixels = np.asarray(decode(content))
    except Exception as error:  # decoders of damaged files raise anything
        reason = _plain(error) if not height else f"PIL cannot decode it: {_plain(error)}"
        traits["truncated"] = "truncated" in reason.lower()
    ending = name.rpartition(".")[2].lower()
    traits["misnamed"] = height > 0 and form != {"jpg": "jpeg", "tif": "tiff"}.get(ending, ending)
    traits["tiny"] = 0 < min(height, width) < TINY
    digest = hashlib.blake2b(content, digest_size=16).digest()
    has = (traits.get(trait, False) for trait in TRAITS)
    return (height, width, KINDS.index(form), digest, *has), reason, pixels


def _look(image: Image.Image, content: bytes) -> dict[str, bool]:
    # Only if there is some: PIL decodes the whole of a PNG in search of EXIF.
    turned = ("exif" in image.info or image.format == "TIFF") and image.getexif().get(ORIENTATION) in range(2, 9)
    return {
        "cmyk": image.mode == "CMYK",
        "sixteen_bit": image.mode.startswith("I") or (image.format == "PNG" and content[24] == 16),
        "exif_rotated": turned,
        "grey": image.mode in ("1", "L", "LA") or image.mode.startswith("I"),
        "palette": image.mode in ("P", "PA"),
        "alpha": image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info,
    }


def _plain(error: Exception) -> str:
    """Return an error in one line, without the address of an object in memory."""
    return re.sub(r" <.*>", "", " ".join(str(error).split()))[:200] or type(error).__name__


@dataclass
class Findings:
    """What was found in a split: 36 bytes an image, and a dictionary for each of the few that are bad."""

    root: Path
    index: Index
    rows: NDArray[Any]  # FINDING [n]
    bad: dict[int, dict[str, Any]] = field(default_factory=dict)  # image -> reason, file, bytes, modified_ns
    hidden: list[str] = field(default_factory=list)
    not_images: list[str] = field(default_factory=list)

    def name(self, image: int) -> str:
        """Return the path of an image below the root, in shards with its name in there."""
        return self.index.storage.path(image)[len(str(self.root)) + 1 :]

    def classes(self) -> dict[str, int]:
        """Count the images of each class; in shards without classes.txt its label is its name."""
        counts = np.bincount(self.index.labels, minlength=len(self.index.classes))
        names = self.index.classes or [str(label) for label in range(len(counts))]
        return dict(zip(names, counts.tolist(), strict=True))

    def summary(self, duplicates: list[list[str]]) -> dict[str, Any]:
        """Return what audit.json says of the split."""
        kinds = np.bincount(self.rows["kind"], minlength=len(KINDS))
        return {
            "images": len(self.index),
            "classes": self.classes(),
            "sizes": self._sizes(),
            "formats": {kind: int(n) for kind, n in zip(KINDS, kinds, strict=True) if n},
            **{trait: int(self.rows[trait].sum()) for trait in COUNTED},
            **{trait: self._listed(trait) for trait in TRAITS if trait not in COUNTED},
            "duplicates": listed(duplicates),
            "hidden": listed(self.hidden),
            "not_images": listed(self.not_images),
            "undecodable": {self.name(image): self.bad[image] for image in sorted(self.bad)},
        }

    def _listed(self, trait: str) -> dict[str, Any]:
        images = np.flatnonzero(self.rows[trait])
        return listed([self.name(int(image)) for image in images[:LISTED]], len(images))

    def _sizes(self) -> dict[str, Any]:
        """Return the sizes of the images whose head tells one."""
        rows = self.rows[self.rows["height"] > 0]
        if not len(rows):
            return {}
        shorter = np.minimum(rows["height"], rows["width"])
        bins = np.bincount(np.searchsorted(SIDES, shorter, "right") - 1, minlength=len(SIDES))
        ends = [f"{low}-{high - 1}" for low, high in pairwise(SIDES)] + [f"{SIDES[-1]}-"]
        sides = {side: [int(f(rows[side])) for f in (np.min, np.median, np.max)] for side in ("width", "height")}
        return sides | {
            "shorter_side": dict(zip(ends, bins.tolist(), strict=True)),
            "megapixels_max": round(float((rows["height"].astype(np.int64) * rows["width"]).max()) / 1e6, 3),
        }


def listed(names: list[Any], count: int | None = None) -> dict[str, Any]:
    return {"count": len(names) if count is None else count, "names": names[:LISTED]}


def duplicates(splits: list[Findings]) -> list[list[tuple[int, int]]]:
    """Return groups of (split, image) whose files have the same bytes."""
    digests = np.concatenate([findings.rows["digest"] for findings in splits])
    kinds = np.concatenate([findings.rows["kind"] for findings in splits])
    starts = np.cumsum([0, *(len(findings.rows) for findings in splits)])
    known = np.flatnonzero((digests != b"") & (kinds != KINDS.index("empty")))
    _, which, counts = np.unique(digests[known], return_inverse=True, return_counts=True)
    groups: dict[bytes, list[tuple[int, int]]] = {}
    for image in known[counts[which] > 1].tolist():
        split = int(np.searchsorted(starts, image, "right")) - 1
        groups.setdefault(digests[image], []).append((split, image - int(starts[split])))
    return sorted(groups.values())
