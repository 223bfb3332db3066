"""Making images smaller, and decoding them once for all epochs."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from senet.data.pixels import decode, head, opened, uncompressed
from senet.errors import UsageError


@dataclass(frozen=True)
class Encoding:
    """Which images are made smaller: those whose shorter side is over `short_side` pixels, as JPEG; others stay byte
    for byte.

    So do images that are neither grey nor RGB, and those that cannot be decoded (an audit names them); and validation
    images unless `val`, for a net's errors on smaller ones are not those that others report. Colours keep their
    resolution (4:4:4): with PIL's 4:2:0, 256 pixels and quality 90 raised the top-1 error of a trained net from 11.8 to
    12.9 %, and 4:4:4 its loss by a quarter of that, for 37 instead of 29 kB an image.

    `decoded` keeps pixels instead, of that `fraction` of the images, in a form that every decoder reads (PPM).
    """

    short_side: int | None = None
    quality: int = 90
    val: bool = False
    decoded: bool = False
    fraction: float = 1.0

    def __post_init__(self) -> None:
        if self.short_side is not None and self.short_side < 1:
            raise UsageError(f"--short-side {self.short_side}: must be at least 1 pixel")
        if not 1 <= self.quality <= 100:
            raise UsageError(f"--quality {self.quality}: a JPEG quality is 1 to 100")
        if not 0 < self.fraction <= 1:
            raise UsageError(f"--fraction {self.fraction}: must be above 0, and at most 1")
        if self.fraction < 1 and not self.decoded:
            raise UsageError("--fraction would have no effect without --decoded; leave it out, or give that too")

    def of(self, split: str) -> Encoding:
        """Return what is done to the images of a split."""
        return Encoding() if split == "val" and not self.val else self

    @property
    def shrinks(self) -> bool:
        """Whether images become JPEGs of fewer bytes; how many is not known beforehand."""
        return self.short_side is not None and not (self.decoded and self.fraction == 1)

    @property
    def plan(self) -> dict[str, Any]:
        decoded = {"decoded": self.fraction} if self.decoded else {}
        jpeg = {"quality": self.quality, "subsampling": "4:4:4"} if self.shrinks else {}
        return decoded | {"short_side": self.short_side} | jpeg

    def part(self, position: float) -> Encoding:
        """Return what is done to an image at a `position` of its shard, 0 to 1: the first ones are decoded."""
        return self if position < self.fraction else replace(self, decoded=False, fraction=1.0)

    def size(self, original: bytes) -> int:
        """Return how many bytes the pixels of an image would take; 0 if it cannot be decoded."""
        try:
            height, width, _ = head(original)
        except (OSError, ValueError, SyntaxError):
            return 0
        ratio = min(1.0, self.short_side / min(height, width)) if self.short_side else 1.0
        return 3 * round(ratio * height) * round(ratio * width)

    def __call__(self, original: bytes) -> bytes:
        """Return the bytes of an image file as they are to be written."""
        if self.decoded:
            return self._pixels(original)
        if self.short_side is None:
            return original
        try:
            with opened(original) as image:
                if min(image.size) <= self.short_side or image.mode not in ("L", "RGB"):
                    return original
                # EXIF says which side is up.
                exif = image.info.get("exif", b"") if image.format == "JPEG" else b""
                file = io.BytesIO()
                self._small(image).save(file, "JPEG", quality=self.quality, subsampling=0, exif=exif)
                return file.getvalue()
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return original

    def _pixels(self, original: bytes) -> bytes:
        """Return the pixels of an image as a PPM, what cannot be decoded as it is."""
        try:
            head(original)
            image = decode(original)
        except (OSError, ValueError, SyntaxError):
            return original
        return uncompressed(self._small(image))

    def _small(self, image: Image.Image) -> Image.Image:
        shorter = min(image.size)
        if self.short_side is None or shorter <= self.short_side:
            return image
        width, height = (round(side * self.short_side / shorter) for side in image.size)
        return image.resize((width, height), Image.Resampling.LANCZOS)
