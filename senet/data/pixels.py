"""Which part of which image becomes a sample: what both backends of image folders share."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from senet.config import Folder
from senet.data.philox import Floats, Ints, crops, uniforms

STARTS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # JPEG markers that start a frame and hold its size
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM")  # what both backends decode
UNTURNED = {  # from what PIL makes of an orientation back to what is stored
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
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
LARGEST = 178_956_970  # pixels: where PIL suspects a decompression bomb


def opened(content: bytes) -> ImageFile:
    """Open an image file, of FORMATS only: PIL knows others, and starts ghostscript for some, whatever their name.

    Raises UnidentifiedImageError for any other, and what PIL raises for damaged ones.
    """
    return Image.open(io.BytesIO(content), formats=FORMATS)


def size(content: bytes) -> tuple[int, int]:
    """(height, width) in pixels from the head of an image file, by its content, whatever it is called.

    Raises ValueError or OSError for what is no image, too large, or a JPEG without its end: decoders differ in what
    they make of a truncated one, and one that decodes only a part may not notice.
    """
    if content[:2] == b"\xff\xd8":
        height, width = _jpeg_size(content)
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
        except Image.DecompressionBombError as error:
            raise ValueError(str(error)) from None
        except UnidentifiedImageError:
            raise ValueError(f"not one of {', '.join(FORMATS)}; begins with {content[:8]!r}") from None
    if height * width > LARGEST:
        raise ValueError(f"{width} x {height} pixels, more than the {LARGEST} that are sensible")
    return height, width


def decode(content: bytes) -> Image.Image:
    """An image that has a `size`, as stored, in RGB. Raises ValueError, OSError or SyntaxError for what cannot be
    decoded.
    """
    image: Image.Image = opened(content)
    turned = _tiff_orientation(image)
    image.load()
    if turned in UNTURNED:
        image = image.transpose(UNTURNED[turned])
    if image.mode.startswith("I;16") or image.mode == "I":  # PIL would clip 16 bits to white
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:  # else PIL warns of what is dropped here
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


def kind(content: bytes) -> str:
    """The format of an image file by its first bytes: jpeg, png, ..., empty or unknown."""
    if not content:
        return "empty"
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "webp"
    return next((name for signature, name in SIGNATURES.items() if content.startswith(signature)), "unknown")


def _tiff_orientation(image: Image.Image) -> int:
    """PIL turns images as their EXIF says for TIFF alone; elsewhere images are taken as stored, as by DALI."""
    return int(image.getexif().get(0x0112, 1)) if image.format == "TIFF" else 1


def _jpeg_size(content: bytes) -> tuple[int, int]:
    place, found = 2, (0, 0)
    while place + 9 <= len(content) and content[place] == 0xFF:
        marker = content[place + 1]
        if marker in STARTS:
            height, width = struct.unpack_from(">HH", content, place + 5)
            found = height, width
        if marker == 0xDA:
            if not content.endswith(b"\xff\xd9") and content.rfind(b"\xff\xd9") < place:
                raise ValueError("a JPEG without its end: truncated")
            break
        if marker == 0xFF:  # padding
            place += 1
        elif 0xD0 <= marker <= 0xD8 or marker == 0x01:  # without a length
            place += 2
        else:
            place += 2 + struct.unpack_from(">H", content, place + 2)[0]
    else:
        raise ValueError("a JPEG without pixels: truncated or damaged")
    if not all(found):
        raise ValueError("a JPEG without a size: damaged")
    return found


@dataclass(frozen=True)
class Cut:
    """For each of b images: the box [b, 4] (y, x, height, width) to take, and whether to flip it [b]."""

    boxes: Ints
    flips: Ints


def random_cut(data: Folder, seed: int, epoch: int, keys: Ints, sizes: Ints) -> Cut:
    """Training: the paper's random crop and horizontal flip of images of `sizes` [b, 2] (height, width)."""
    draws: Floats = uniforms(seed, epoch, keys, 23)
    boxes = crops(draws, sizes[:, 0], sizes[:, 1], data.area, data.aspect)
    return Cut(boxes, ((draws[:, 22] < 0.5) & data.flip).astype(np.int64))


def val_size(data: Folder, height: int, width: int) -> tuple[int, int]:
    """(height, width) of a validation image whose shorter side has become `data.resize`, rounded as
    torchvision does.
    """
    short, long = min(height, width), max(height, width)
    longer = int(data.resize * long / short)
    return (data.resize, longer) if height <= width else (longer, data.resize)


def val_corner(data: Folder, height: int, width: int) -> tuple[int, int]:
    """(y, x) of the centre crop of a resized image, rounded as torchvision does."""
    return round((height - data.crop) / 2), round((width - data.crop) / 2)
