"""Making images smaller."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image

from senet.data.pixels import opened
from senet.errors import UsageError


@dataclass(frozen=True)
class Encoding:
    """Which images are made smaller: those whose shorter side is over `short_side` pixels, as JPEG; others stay byte
    for byte.

    So do images that are neither grey nor RGB, and those that cannot be decoded (an audit names them).
    """

    short_side: int | None = None
    quality: int = 90

    def __post_init__(self) -> None:
        if self.short_side is not None and self.short_side < 1:
            raise UsageError(f"--short-side {self.short_side}: must be at least 1 pixel")
        if not 1 <= self.quality <= 100:
            raise UsageError(f"--quality {self.quality}: a JPEG quality is 1 to 100")

    @property
    def plan(self) -> dict[str, Any]:
        return asdict(self) if self.short_side else {"short_side": None}

    def __call__(self, original: bytes) -> bytes:
        """Return the bytes of an image file as they are to be written."""
        if self.short_side is None:
            return original
        try:
            with opened(original) as image:
                if min(image.size) <= self.short_side or image.mode not in ("L", "RGB"):
                    return original
                width, height = (round(side * self.short_side / min(image.size)) for side in image.size)
                # EXIF says which side is up.
                exif = image.info.get("exif", b"") if image.format == "JPEG" else b""
                small, file = image.resize((width, height), Image.Resampling.LANCZOS), io.BytesIO()
                small.save(file, "JPEG", quality=self.quality, exif=exif)
                return file.getvalue()
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return original
