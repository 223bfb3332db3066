"""The catalogue of odd and bad images: each is used, alike by both backends, or refused with a reason; none stops a
run.

Every kind of image is a class of its own, so that labels tell which pixels are whose.
"""

from __future__ import annotations

import io
import logging
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from senet.config import Data, Folder
from senet.data.source import Source, train_loader, val_loader
from senet.errors import UsageError

CPU = torch.device("cpu")
BACKENDS = ["dali", "pillow"]
TURNED = Image.Exif()
TURNED[0x0112] = 6  # to be shown rotated by 90 degrees
RAMP = np.add.outer(np.linspace(0, 40000, 90), np.linspace(0, 25000, 120)).astype(np.uint16)


def picture(height: int = 90, width: int = 120) -> Image.Image:
    blocks = np.random.default_rng(0).integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str = "JPEG", **settings: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **({"quality": 92} if form == "JPEG" else {}), **settings)
    return file.getvalue()


def transparent(image: Image.Image) -> Image.Image:
    image.putalpha(Image.fromarray((RAMP >> 8).astype(np.uint8)))
    return image


def deep_png(pixels: Any) -> bytes:
    """RGB of 16 bits, which PIL cannot write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(pixels: Any, photometric: int, planar: bool = False) -> bytes:
    """An uncompressed TIFF of kinds that PIL cannot write; pixels [height, width, channels] of 8 or 16 bits."""
    height, width, channels = pixels.shape
    planes = [pixels.transpose(2, 0, 1)[n].tobytes() for n in range(channels)] if planar else [pixels.tobytes()]
    tags = [(256, [width]), (257, [height]), (258, [8 * pixels.itemsize] * channels), (259, [1]), (262, [photometric])]
    tags += [(273, [0] * len(planes)), (277, [channels]), (278, [height]), (279, [len(plane) for plane in planes])]
    tags += [(284, [1 + planar])] + ([(338, [2])] if channels == 4 else [])
    at = 14 + 12 * len(tags)
    tables = {tag: at + 16 * n for n, (tag, values) in enumerate(tags)}  # of values that do not fit in their entries
    starts = [at + 16 * len(tags) + sum(map(len, planes[:n])) for n in range(len(planes))]
    head, rest = struct.pack("<2sHIH", b"II", 42, 8, len(tags)), b""
    for tag, values in tags:
        packed = struct.pack(f"<{len(values)}I", *(starts if tag == 273 else values)).ljust(16, b"\0")
        head += struct.pack("<HHI", tag, 4, len(values))
        head += packed[:4] if len(values) == 1 else struct.pack("<I", tables[tag])
        rest += packed
    return head + b"\0" * 4 + rest + b"".join(planes)


def without_adobe(content: bytes) -> bytes:
    """A JPEG without the marker that says whether CMYK is inverted."""
    at = content.index(b"\xff\xee")
    return content[:at] + content[at + 2 + int.from_bytes(content[at + 2 : at + 4], "big") :]


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes(byte ^ 0x55 for byte in content[middle : middle + 40]) + content[middle + 40 :]


class Kind(NamedTuple):
    """An image that is used. Tolerances are (mean, maximum) of the differences in levels of 255.

    Measured between backends: at most (0.2, 1) in validation and (0.2, 5) in training; (0.6, 17) for black and white.
    """

    ending: str
    content: Callable[[], bytes]
    like: str = ""  # the kind that it must look like in validation
    off: tuple[float, float] = (0.6, 3)  # from that
    val: tuple[float, float] = (0.5, 3)  # between the backends
    train: tuple[float, float] = (0.5, 8)


JPEG_LOSS = (2.0, 16)
USED = {
    "rgb": Kind("png", lambda: encoded(picture(), "PNG")),
    "grey": Kind("png", lambda: encoded(picture().convert("L"), "PNG")),
    "ramp": Kind("png", lambda: encoded(Image.fromarray((RAMP >> 8).astype(np.uint8)), "PNG")),
    "jpeg": Kind("JPEG", lambda: encoded(picture()), "rgb", JPEG_LOSS),
    "jpeg_progressive": Kind("JPEG", lambda: encoded(picture(), progressive=True), "jpeg"),
    "jpeg_cmyk": Kind("JPEG", lambda: encoded(picture().convert("CMYK")), "rgb", JPEG_LOSS),
    "jpeg_grey": Kind("JPEG", lambda: encoded(picture().convert("L")), "grey", JPEG_LOSS),
    "jpeg_exif": Kind("JPEG", lambda: encoded(picture(), exif=TURNED), "jpeg"),
    "png_exif": Kind("png", lambda: encoded(picture(), "PNG", exif=TURNED), "rgb"),
    "webp_exif": Kind("webp", lambda: encoded(picture(), "WEBP", exif=TURNED), "webp"),
    "webp": Kind("webp", lambda: encoded(picture(), "WEBP"), "rgb", (3.0, 20)),
    "png_named_jpeg": Kind("JPEG", lambda: encoded(picture(), "PNG"), "rgb"),
    "webp_named_jpeg": Kind("JPEG", lambda: encoded(picture(), "WEBP", lossless=True), "rgb"),
    "bmp": Kind("bmp", lambda: encoded(picture(), "BMP"), "rgb"),
    "tiff": Kind("tif", lambda: encoded(picture(), "TIFF", compression="tiff_lzw"), "rgb"),
    "ppm": Kind("ppm", lambda: encoded(picture(), "PPM"), "rgb"),
    "palette": Kind("png", lambda: encoded(picture().quantize(256), "PNG"), "rgb", (4.0, 40)),
    "palette_transparent": Kind(
        "png", lambda: encoded(picture().quantize(256), "PNG", transparency=bytes(range(256))), "palette"
    ),
    "rgba": Kind("png", lambda: encoded(transparent(picture()), "PNG"), "rgb"),
    "grey_alpha": Kind("png", lambda: encoded(transparent(picture().convert("L")), "PNG"), "grey"),
    "black_and_white": Kind("png", lambda: encoded(picture().convert("1"), "PNG"), train=(1.5, 40)),
    "png_16_bit": Kind("png", lambda: encoded(Image.fromarray(RAMP), "PNG"), "ramp"),
    "tiff_16_bit": Kind("tif", lambda: encoded(Image.fromarray(RAMP), "TIFF"), "ramp"),
    "tiff_g4": Kind(
        "tif",
        lambda: encoded(picture().convert("1"), "TIFF", compression="group4"),
        "black_and_white",
        train=(1.5, 40),
    ),
    "tiff_planar": Kind("tif", lambda: tiff(np.asarray(picture()), 2, planar=True), "rgb"),
    "tiff_16_bit_rgba": Kind("tif", lambda: tiff(np.stack([RAMP] * 3 + [RAMP * 0 + 65535], 2), 2), "ramp"),
    "tiff_lab": Kind("tif", lambda: tiff(np.asarray(picture()), 8)),
    "jpeg_cmyk_bare": Kind("JPEG", lambda: without_adobe(encoded(picture().convert("CMYK")))),
    "png_16_bit_rgb": Kind("png", lambda: deep_png(np.stack([RAMP] * 3, 2)), "ramp"),
    "1x1": Kind("JPEG", lambda: encoded(Image.new("RGB", (1, 1), (200, 30, 90)))),
    "500x3": Kind("JPEG", lambda: encoded(picture(3, 500))),
    "3x500": Kind("JPEG", lambda: encoded(picture(500, 3))),
}
REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {  # with what the reason says
    "half": (lambda: encoded(picture())[:1500], "truncated"),
    "lacks_2_bytes": (lambda: encoded(picture())[:-2], "truncated"),
    "head_only": (lambda: encoded(picture())[:300], "truncated"),
    "empty": (lambda: b"", "an empty file"),
    "text": (lambda: b"a text, not an image", "begins with b'a text,"),
    "postscript": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "begins with b'%!PS"),
    "gif": (lambda: encoded(picture().convert("P"), "GIF"), "not one of JPEG.*begins with b'GIF8"),
}


def make(root: Path, files: dict[str, tuple[str, bytes]]) -> Data:
    """A set with a class, of one image in each split, for each of `files`: its ending and content."""
    for split in ("train", "val"):
        for name, (ending, content) in files.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            (folder / f"image.{ending}").write_bytes(content)
    return Folder(classes=len(files), crop=32, resize=40)


def shown(root: Path, data: Data, backend: str) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, str]]:
    """What the loaders show of each class, in levels of 255, by split; and what they found bad."""
    names = sorted(path.name for path in (root / "train").iterdir())
    pixels: dict[str, dict[str, torch.Tensor]] = {}
    bad: dict[str, str] = {}
    source = Source(root, backend, workers=1)
    for split in ("train", "val"):
        loader = (
            train_loader(data, source, len(names), len(names), 0, 0, 1, CPU)
            if split == "train"
            else val_loader(data, source, 0, 1, CPU)
        )
        try:
            position = (0, 0) if split == "train" else ()
            batches = list(loader.batches(*position))  # type: ignore[misc]
        finally:
            loader.close()
        bad |= loader.bad
        levels = [
            (batch.images * torch.tensor(data.std).view(3, 1, 1) + torch.tensor(data.mean).view(3, 1, 1)) * 255
            for batch in batches
        ]
        labels = torch.cat([batch.labels for batch in batches]).tolist()
        assert split == "val" or len(labels) == len(names)
        pixels[split] = dict(zip((names[label] for label in labels), torch.cat(levels), strict=True))
    return pixels, bad


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each backend shows of the kinds that are used."""
    root = tmp_path_factory.mktemp("used")
    data = make(root, {name: (kind.ending, kind.content()) for name, kind in USED.items()})
    return {backend: shown(root, data, backend) for backend in BACKENDS}


def differ(one: torch.Tensor, other: torch.Tensor) -> tuple[float, float]:
    difference = (one - other).abs()
    return float(difference.mean()), float(difference.max())


def within(found: tuple[float, float], bounds: tuple[float, float]) -> bool:
    return found[0] <= bounds[0] and found[1] <= bounds[1]


@pytest.mark.parametrize("name", USED)
def test_odd_images_are_used_alike_by_both_backends(used: dict[str, Any], name: str) -> None:
    kind = USED[name]
    for backend in BACKENDS:
        pixels, bad = used[backend]
        assert not [reason for path, reason in bad.items() if f"/{name}/" in path]
        if kind.like:
            assert within(found := differ(pixels["val"][name], pixels["val"][kind.like]), kind.off), (backend, found)
    for split, bounds in (("val", kind.val), ("train", kind.train)):
        found = differ(*(used[backend][0][split][name] for backend in BACKENDS))
        assert within(found, bounds), (split, found)


@pytest.mark.parametrize("backend", BACKENDS)
def test_sixteen_bits_are_scaled_not_clipped(used: dict[str, Any], backend: str) -> None:
    for name in ("png_16_bit", "tiff_16_bit", "png_16_bit_rgb"):
        levels = used[backend][0]["val"][name]
        assert 115 < levels.mean() < 135
        assert levels.max() < 250


@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_images_are_named_with_a_reason_and_none_stops_a_run(tmp_path: Path, backend: str) -> None:
    good = {f"good{n}": ("JPEG", encoded(picture(60 + n))) for n in range(8)}
    data = make(tmp_path, good | {name: ("JPEG", content()) for name, (content, _) in REFUSED.items()})
    pixels, bad = shown(tmp_path, data, backend)
    assert set(pixels["val"]) == set(good)
    assert set(pixels["train"]) <= set(good)
    assert set(bad) == {f"{tmp_path}/{split}/{name}/image.JPEG" for split in ("train", "val") for name in REFUSED}
    for path, reason in bad.items():
        assert re.search(REFUSED[Path(path).parent.name][1], reason), (path, reason)


@pytest.mark.parametrize("backend", BACKENDS)
def test_flipped_bytes_are_used_or_named(tmp_path: Path, backend: str) -> None:
    """Decoders differ in what they make of them, and one that decodes a part may see nothing wrong."""
    content = encoded(picture())
    places = {f"damaged{n}": content[: 700 + 90 * n] + flipped(content[700 + 90 * n :]) for n in range(8)}
    files = {name: ("JPEG", damaged) for name, damaged in places.items()} | {
        "good": ("JPEG", content),
        "png": ("JPEG", flipped(encoded(picture(), "PNG"))),
        "webp": ("JPEG", flipped(encoded(picture(), "WEBP"))),
    }
    pixels, bad = shown(tmp_path, make(tmp_path, files), backend)
    named = {Path(path).parent.name for path in bad if path.startswith(f"{tmp_path}/val/")}
    assert set(pixels["val"]) == set(files) - named
    assert "good" in pixels["val"]
    assert all(bad.values())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_decompression_bomb_is_named(tmp_path: Path, backend: str) -> None:
    """400 megapixels in 50 kB."""
    data = make(
        tmp_path,
        {"bomb": ("png", encoded(Image.new("1", (20000, 20000)), "PNG")), "good": ("JPEG", encoded(picture()))},
    )
    pixels, bad = shown(tmp_path, data, backend)
    assert set(bad) == {f"{tmp_path}/{split}/bomb/image.png" for split in ("train", "val")}
    assert set(pixels["val"]) == {"good"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_turned_tiff_is_shown_as_stored(tmp_path: Path, backend: str) -> None:
    files = {
        name: ("tif", encoded(picture(), "TIFF", exif=exif))
        for name, exif in (("plain", Image.Exif()), ("turned", TURNED))
    }
    pixels, bad = shown(tmp_path, make(tmp_path, files), backend)
    assert not bad
    assert torch.equal(pixels["val"]["turned"], pixels["val"]["plain"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_hidden_folders_are_ignored_with_a_warning(
    few_images: Path, backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    for split in ("train", "val"):
        (few_images / split / ".hidden").mkdir()
        (few_images / split / ".hidden/a.JPEG").write_bytes(encoded(picture()))
        (few_images / split / "class1/._000.JPEG").write_bytes(b"what macOS leaves behind")
    with caplog.at_level(logging.WARNING):
        assert counted(few_images, backend) == ([27, 9], {})
    assert all(
        f"{few_images / split}: folders of these names are no classes and are ignored: .hidden" in caplog.text
        for split in ("train", "val")
    )


def counted(root: Path, backend: str) -> tuple[list[int], dict[str, str]]:
    data, source = Folder(classes=3, crop=32, resize=40), Source(root, backend, workers=1)
    train, val = train_loader(data, source, 9, 9, 0, 0, 1, CPU), val_loader(data, source, 0, 1, CPU)
    counts = [sum(len(b.labels) for b in batches) for batches in (train.batches(0, 0), val.batches())]
    train.close()
    val.close()
    return counts, train.bad | val.bad


@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_classes_are_refused(few_images: Path, backend: str) -> None:
    data = Folder(classes=3, crop=32, resize=40)

    def refused(message: str, data: Data = data) -> None:
        with pytest.raises(UsageError, match=message):
            train_loader(data, Source(few_images, backend), 9, 9, 0, 0, 1, CPU)
        with pytest.raises(UsageError, match=message):
            val_loader(data, Source(few_images, backend), 0, 1, CPU)

    refused("3 classes in (train|val), but data.classes is 4; .*data.classes=3", replace(data, classes=4))
    (few_images / "val/class2").rename(few_images / "val/class7")
    refused("train/ and val/ have other classes: class2, class7")
    (few_images / "val/class7").rename(few_images / "val/class2")
    for split in ("train", "val"):
        for path in (few_images / split / "class1").iterdir():
            path.rename(path.with_suffix(".txt"))
    refused("class1: an empty class folder")
