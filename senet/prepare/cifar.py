"""CIFAR-10 and CIFAR-100: their archives as published, checked and unpacked."""

import shutil
import socket
from pathlib import Path

from senet.data.cifar import LAYOUTS, Layout
from senet.errors import UsageError
from senet.prepare import archive

URL = "https://www.cs.toronto.edu/~kriz/"
LARGEST_FILE = 200 << 20  # bytes; the largest of the real ones is CIFAR-100's train, 155 MB
LARGEST_TOTAL = 400 << 20


def prepare(name: str, folder: Path, source: Path | None = None, checksum: bool = True) -> str:
    """Unpack `name`, cifar10 or cifar100, into `folder`, in the archive's own folder there; returns what was done, in a
    sentence.

    From the archive `source`, or downloaded. A second call finds the first one's work. Everything is unpacked aside and
    moved in one step, so that an interrupted call leaves no data set that looks whole. Raises UsageError for an archive
    that is not the published one (by its MD5 sum, unless `checksum` is off, and by its files), that is not safe to
    unpack, or that cannot be had.
    """
    layouts, aside = LAYOUTS[name], folder / ".partial"
    if there := _layout(name, folder):
        return f"{folder / there.folder} is there already; nothing to do"
    if source is not None and not source.is_file():
        raise UsageError(f"{source}: no such file; --archive names {' or '.join(layout.archive for layout in layouts)}")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        unpacked = aside / "unpacked"
        unpacked.mkdir(parents=True)
        source = source or _download(layouts[0], aside, checksum)
        if checksum:
            archive.identify(source, {layout.archive: layout.md5 for layout in layouts})
        archive.extract(source, unpacked, LARGEST_FILE, LARGEST_TOTAL)
        layout = _layout(name, unpacked, source)
        if layout is None:
            folders = " nor ".join(layout.folder for layout in layouts)
            raise UsageError(f"{source}: holds neither {folders}: not an archive of {name}")
        (unpacked / layout.folder).rename(folder / layout.folder)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written: {error.strerror}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    verified = "verified" if checksum else "NOT verified (--no-checksum)"
    return f"{source.name} {verified}, unpacked to {folder / layout.folder}"


def _layout(name: str, folder: Path, source: Path | None = None) -> Layout | None:
    """Return the layout in which a set is in `folder`, None if it is not; it is to be whole. Raises UsageError."""
    layout = next((layout for layout in LAYOUTS[name] if (folder / layout.folder).is_dir()), None)
    missing = [file for file in layout.all_files if not (folder / layout.folder / file).is_file()] if layout else []
    if layout and missing and source:
        raise UsageError(f"{source}: lacks {', '.join(missing)}: not the whole {layout.archive}")
    if layout and missing:
        raise UsageError(f"{folder / layout.folder}: lacks {', '.join(missing)}; remove that folder and prepare again")
    return layout


def _download(layout: Layout, into: Path, checksum: bool) -> Path:
    from torchvision.datasets.utils import download_url  # brings torch, which an archive at hand does not need

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)  # seconds; a firewall that drops packets would otherwise hang it
    try:
        download_url(URL + layout.archive, str(into), layout.archive, layout.md5 if checksum else None)
    except (OSError, RuntimeError) as error:
        why = " ".join(str(error).split())
        raise UsageError(f"{URL}{layout.archive}: download failed ({why}); pass it by --archive FILE") from None
    finally:
        socket.setdefaulttimeout(before)
    return into / layout.archive
