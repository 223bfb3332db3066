"""CIFAR-10 and CIFAR-100: their archives as published, checked and unpacked."""

from __future__ import annotations

import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

from senet.errors import UsageError
from senet.prepare import archive

URL = "https://www.cs.toronto.edu/~kriz/"
LARGEST_FILE = 200 << 20  # bytes; the largest of the real ones is CIFAR-100's train, 155 MB
LARGEST_TOTAL = 400 << 20


@dataclass(frozen=True)
class Form:
    """One of the two forms in which a set is published. `files` are those that hold images."""

    archive: str
    md5: str
    folder: str
    files: tuple[str, ...]


_FIVE = tuple(f"data_batch_{number}" for number in range(1, 6))
FORMS = {
    "cifar10": (
        Form(
            "cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a", "cifar-10-batches-py", (*_FIVE, "test_batch")
        ),
        Form(
            "cifar-10-binary.tar.gz",
            "c32a1d4ab5d03f1284b67883e8d87530",
            "cifar-10-batches-bin",
            (*(f"{name}.bin" for name in _FIVE), "test_batch.bin"),
        ),
    ),
    "cifar100": (
        Form("cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85", "cifar-100-python", ("train", "test")),
        Form(
            "cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8", "cifar-100-binary", ("train.bin", "test.bin")
        ),
    ),
}


def prepare(name: str, folder: Path, source: Path | None = None, checksum: bool = True) -> str:
    """Unpack `name`, cifar10 or cifar100, into `folder`, in the archive's own folder there; returns what was done, in a
    sentence.

    From the archive `source`, or downloaded. A second call finds the first one's work. Everything is unpacked aside and
    moved in one step, so that an interrupted call leaves no data set that looks whole. Raises UsageError for an archive
    that is not the published one (by its MD5 sum, unless `checksum` is off, and by its files), that is not safe to
    unpack, or that cannot be had.
    """
    for form in FORMS[name]:
        if (folder / form.folder).is_dir():
            _require(form, folder)
            return f"{folder / form.folder} is there already; nothing to do"
    if source is not None and not source.is_file():
        raise UsageError(
            f"{source}: no such file; --archive names {FORMS[name][0].archive} or {FORMS[name][1].archive}"
        )
    aside = folder / ".partial"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written: {error.strerror}") from None
    try:
        source = source or _download(FORMS[name][0], aside, checksum)
        if checksum:
            archive.identify(source, {form.archive: form.md5 for form in FORMS[name]})
        unpacked = aside / "unpacked"
        unpacked.mkdir()
        archive.extract(source, unpacked, LARGEST_FILE, LARGEST_TOTAL)
        form = _form(name, source, unpacked)
        (unpacked / form.folder).rename(folder / form.folder)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written: {error.strerror}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return (
        f"{source.name} {'verified' if checksum else 'NOT verified (--no-checksum)'}, unpacked to "
        f"{folder / form.folder}"
    )


def _form(name: str, source: Path, unpacked: Path) -> Form:
    for form in FORMS[name]:
        if (unpacked / form.folder).is_dir():
            _require(form, unpacked, source)
            return form
    folders = " nor ".join(form.folder for form in FORMS[name])
    raise UsageError(f"{source}: holds neither {folders}: not an archive of {name}")


def _require(form: Form, folder: Path, source: Path | None = None) -> None:
    missing = [file for file in form.files if not (folder / form.folder / file).is_file()]
    if missing and source:
        raise UsageError(f"{source}: lacks {', '.join(missing)}: not the whole {form.archive}")
    if missing:
        raise UsageError(f"{folder / form.folder}: lacks {', '.join(missing)}; remove that folder and prepare again")


def _download(form: Form, into: Path, checksum: bool) -> Path:
    from torchvision.datasets.utils import download_url  # brings torch, which an archive at hand does not need

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)  # seconds; a firewall that drops packets would otherwise hang it
    try:
        download_url(URL + form.archive, str(into), form.archive, form.md5 if checksum else None)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            f"{URL}{form.archive}: download failed ({reason}); fetch it elsewhere and pass --archive FILE"
        ) from None
    finally:
        socket.setdefaulttimeout(before)
    return into / form.archive
