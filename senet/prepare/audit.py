"""A look at every image of a data set, by the decoders of training: which cannot be decoded, which are odd, how large
they are.

DIR/audit.json holds all of it; training leaves out by name what is undecodable there. DIR/audit.txt is the page for
people. The lists of images are kept too (index-train.npz), so that training need not make them.
"""

import hashlib
import json
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from senet.data.imagenet import classes
from senet.data.pixels import head
from senet.data.source import has_dali
from senet.data.storage.find import AUDIT, scan, splits
from senet.data.storage.folders import ENDINGS, Folders, is_ignored
from senet.data.storage.index import Index, index_file
from senet.errors import UsageError
from senet.prepare.findings import FINDING, Findings, duplicates, examine
from senet.prepare.page import page
from senet.prepare.pool import count, each
from senet.system import files

CHUNK = 64  # images in a job
PIXELS = 32 << 20  # after which DALI is given what PIL has decoded
TOLERANCE = 3  # levels of 255
Job = tuple[int, Index, bool]  # the first image, its images, whether there is DALI
Result = tuple[int, NDArray[Any], dict[int, dict[str, Any]]]
Decoded = dict[int, tuple[bytes, NDArray[np.uint8] | None]]  # for DALI: contents, and what PIL made of them


def audit(root: Path, processes: int | None = None) -> int:
    """Read every image of ROOT, print what was found, and keep it in ROOT; returns an exit code.

    It heeds no earlier audit or list. Raises UsageError for what is wrong with the folders or shards as a whole.
    """
    began = time.monotonic()
    try:
        found = {split: _list(root, split) for split in splits(root)}
        for split, findings in found.items():
            _examine_all(split, findings, processes)
        result = _result(found) | {"seconds": round(time.monotonic() - began, 1)}
        text = page(root, result).encode(errors="backslashreplace")  # names of files may be any bytes
        files.replace(root / "audit.txt", lambda part: part.write_bytes(text), shared=True)
        lines = json.dumps(result, indent=1) + "\n"
        files.replace(root / "audit.json", lambda part: part.write_text(lines), shared=True)
    except OSError as error:
        raise UsageError(
            f"{error.filename or root}: {error.strerror or error}; an audit reads all of DIR and writes into it"
        ) from None
    print(text.decode(), end="")
    return 0


def _list(root: Path, split: str) -> Findings:
    """Return a split with nothing found yet; its list is kept for training."""
    index = scan(root, split)
    index.save(index_file(root, split))
    unused = _unused(index.storage) if isinstance(index.storage, Folders) else []
    hidden = [name for name in unused if "/." in name]
    others = [name for name in unused if "/." not in name]
    return Findings(root, index, np.zeros(len(index), FINDING), hidden=hidden, not_images=others)


def _unused(images: Folders) -> list[str]:
    """Return what lies in the folders and is not used: hidden files, other endings, links that lead in a circle."""
    base, listed, unused = images.root, images.stamp["times"], []
    for folder in {"", *listed}:
        for name in os.listdir(base / folder):
            path, no_image = os.path.join(folder, name), is_ignored(name) or not name.lower().endswith(ENDINGS)
            if path not in listed and (no_image or folder not in listed):  # beside class folders nothing is used
                unused.append(f"{base.name}/{path}")
    return sorted(unused)


def _examine_all(split: str, findings: Findings, processes: int | None) -> None:
    index, with_dali = findings.index, has_dali()
    spans = (np.arange(start, min(start + CHUNK, len(index))) for start in range(0, len(index), CHUNK))
    jobs = ((int(span[0]), index.subset(span), with_dali) for span in spans)
    results = each(_examine, jobs, processes, f"auditing {split}", len(index))
    for start, rows, bad in results:
        findings.rows[start : start + len(rows)] = rows
        for image, entry in bad.items():
            findings.bad[image] = entry | {"file": os.path.relpath(entry["file"], findings.root)}


def _examine(job: Job) -> Result:
    start, images, with_dali = job
    rows = np.zeros(len(images), FINDING)
    reasons: dict[int, str] = {}
    batch: Decoded = {}
    with _quiet():
        for image, name in enumerate(images.storage.names):
            count()
            try:
                content = images.storage.read(image)
            except (OSError, ValueError) as error:
                reasons[image] = f"cannot be read: {getattr(error, 'strerror', None) or error}"
                continue
            rows[image], reasons[image], pixels = examine(content, name)
            if with_dali and rows[image]["height"] and head(content).alike:
                batch[image] = content, pixels
            if sum(rows[i]["height"].astype(np.int64) * rows[i]["width"] for i in batch) > PIXELS:
                _compare(batch, rows, reasons)
                batch = {}
        _compare(batch, rows, reasons)
    bad = {start + image: _entry(images, image, reason) for image, reason in reasons.items() if reason}
    return start, rows, bad


def _compare(batch: Decoded, rows: NDArray[Any], reasons: dict[int, str]) -> None:
    """Have DALI decode what PIL decoded, and enter what it cannot or does otherwise."""
    decoded = _probe().decode([content for content, _ in batch.values()]) if batch else []
    for (image, (_, pixels)), theirs in zip(batch.items(), decoded, strict=True):
        if theirs is None:
            reasons[image] = "; ".join(filter(None, [reasons[image], "DALI cannot decode it"]))
        elif pixels is not None and np.abs(pixels.astype(np.int16) - theirs).max() > TOLERANCE:
            rows[image]["decoded_differently"] = True


def _entry(images: Index, image: int, reason: str) -> dict[str, Any]:
    """Return what audit.json says of an undecodable image; the file's size and time tell when it was mended."""
    file = images.storage.file(image)
    try:
        size, modified = (status := file.stat()).st_size, status.st_mtime_ns
    except OSError:
        size = modified = 0
    return {"reason": reason, "file": str(file), "bytes": size, "modified_ns": modified}


@lru_cache(maxsize=1)
def _probe() -> Any:
    from senet.data.dali import Probe

    return Probe()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what PIL warns of, and what decoders' libraries write to stderr: the findings say it."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _result(found: dict[str, Findings]) -> dict[str, Any]:
    parts = list(found.values())
    groups = duplicates(parts)
    names = [[parts[split].name(image) for split, image in group] for group in groups]
    summaries = {
        split: findings.summary([name for name, group in zip(names, groups, strict=True) if number in dict(group)])
        for number, (split, findings) in enumerate(found.items())
    }
    labels = [{int(parts[split].index.labels[image]) for split, image in group} for group in groups]
    return {
        "format": AUDIT,
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "decoders": {"pil": version("pillow"), "dali": _dali_version()},
        "splits": summaries,
        "duplicates_in_both_splits": sum(len(dict(group)) > 1 for group in groups),
        "duplicates_of_two_classes": sum(len(each) > 1 for each in labels),
        "class_list": _class_list(parts[0]),
    }


def _dali_version() -> str | None:
    if not has_dali():
        return None
    from senet.data.dali import VERSION

    return str(VERSION)


def _class_list(findings: Findings) -> dict[str, Any]:
    """Describe the classes; without their names, as in some shards, there is no hash."""
    names = sorted(findings.index.classes)
    return {
        "count": len(findings.classes()),
        "sha256": hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest() if names else None,
        "is_imagenet": set(names) == set(classes()),
    }
