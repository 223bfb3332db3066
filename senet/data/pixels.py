"""From the bytes of an image file to its pixels."""

from __future__ import annotations

import io
import re
import struct
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM")  # what both backends decode
LARGEST = 178_956_970  # pixels: where PIL suspects a decompression bomb
STARTS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # JPEG markers that start a frame and hold its size
ORIENTATION = 0x0112  # a tag of EXIF
UNTURNED = {  # from what PIL makes of an orientation back to what is stored
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
_PPM = re.compile(rb"P6\s+([1-9]\d*)\s+([1-9]\d*)\s+255\s")
SIGNATURES = {
    b"\xff\xd8": "jpeg",
    b"\x89PNG\r\n\x1a\n": "png",
    b"GIF8": "gif",
    b"BM": "bmp",
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
    b"P5": "ppm",
    b"P6": "ppm",
}


class Head(NamedTuple):
    """What the head of an image file tells."""

    height: int  # pixels, as stored
    width: int
    alike: bool = True  # whether all decoders make the same of it; otherwise let `decode` do it


def opened(content: bytes) -> ImageFile:
    """Open an image file, of FORMATS only: PIL knows others, and starts ghostscript for some, whatever their name.

    Raises UnidentifiedImageError for any other, and what PIL raises for damaged ones.
    """
    return Image.open(io.BytesIO(content), formats=FORMATS)


def head(content: bytes) -> Head:
    """Read the head of an image file, by its content, whatever it is called.

    Raises ValueError or OSError for what is no image, too large, or a JPEG without its end: decoders differ in what
    they make of a truncated one, and one that decodes only a part may not notice.
    """
    if content[:2] == b"\xff\xd8":
        found = _jpeg_head(content)
    elif not content:
        raise ValueError("an empty file")
    else:
        try:
            with opened(content) as image:
                height, width = image.height, image.width
                if image.mode == "F":
                    raise ValueError("pixels are floating point numbers, which decoders scale each its own way")
                if _tiff_orientation(image) >= 5:
                    height, width = width, height
                found = Head(height, width, image.format != "TIFF")
        except Image.DecompressionBombError as error:
            raise ValueError(str(error)) from None
        except UnidentifiedImageError:
            raise ValueError(f"not one of {', '.join(FORMATS)}; begins with {content[:8]!r}") from None
    if found.height * found.width > LARGEST:
        raise ValueError(f"{found.width} x {found.height} pixels, more than the {LARGEST} that are sensible")
    return found


def decode(content: bytes) -> Image.Image:
    """Decode an image that has a `head`, as stored, to RGB. Raises ValueError, OSError or SyntaxError if it cannot be
    decoded.
    """
    image: Image.Image = opened(content)
    turned = _tiff_orientation(image)
    image.load()
    if turned in UNTURNED:
        image = image.transpose(UNTURNED[turned])
    if image.mode.startswith("I;16") or image.mode == "I":  # PIL would clip 16 bits to white
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:  # otherwise PIL warns of what is dropped here
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


def uncompressed(image: Image.Image) -> bytes:
    """Return an RGB image as a file that all decoders read alike (PPM): a head of 64 bytes, then the pixels."""
    return (b"P6 %d %d" % image.size).ljust(59) + b" 255\n" + image.tobytes()


def stored_size(start: bytes, size: int) -> tuple[int, int]:
    """Return height and width of an image whose pixels are stored as they are, at the end of a file of `size` bytes
    that begins with `start`: a PPM of 8 bits. Of any other, zeros.
    """
    found = _PPM.match(start)
    width, height = (int(found[1]), int(found[2])) if found else (0, 0)
    return (height, width) if found and found.end() + 3 * height * width == size else (0, 0)


def kind(content: bytes) -> str:
    """Return the format of an image file by its first bytes: jpeg, png, ..., empty or unknown."""
    if not content:
        return "empty"
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "webp"
    return next((name for signature, name in SIGNATURES.items() if content.startswith(signature)), "unknown")


def _tiff_orientation(image: Image.Image) -> int:
    """Return how PIL will turn an image: as its EXIF says for TIFF alone. Others are taken as stored, as by DALI."""
    return int(image.getexif().get(ORIENTATION, 1)) if image.format == "TIFF" else 1


def _jpeg_head(content: bytes) -> Head:
    at, height, width, channels = 2, 0, 0, 0
    while at + 10 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if marker in STARTS:
            height, width, channels = struct.unpack_from(">HHB", content, at + 5)
        if marker == 0xDA:
            if not content.endswith(b"\xff\xd9") and content.rfind(b"\xff\xd9") < at:
                raise ValueError("a JPEG without its end: truncated")
            break
        if marker == 0xFF:  # padding
            at += 1
        elif 0xD0 <= marker <= 0xD8 or marker == 0x01:  # without a length
            at += 2
        else:
            at += 2 + struct.unpack_from(">H", content, at + 2)[0]
    else:
        raise ValueError("a JPEG without pixels: truncated or damaged")
    if not height or not width:
        raise ValueError("a JPEG without a size: damaged")
    return Head(height, width, channels in (1, 3))
