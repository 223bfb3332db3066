"""A look at every image of a data set, by the decoders of training: which cannot be decoded, which are odd, how large
they are.

DIR/audit.json holds all of it; training leaves out by name what is undecodable there. DIR/audit.txt is the page for
people. The lists of images are kept too (index-train.npz), so that training need not make them.
"""

from __future__ import annotations

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

from senet.data.source import has_dali
from senet.data.storage.index import (
    ENDINGS,
    Index,
    class_folders,
    find_shards,
    index_file,
    listing,
    scan_folder,
    scan_shards,
    stamp,
)
from senet.errors import UsageError
from senet.prepare.findings import FINDING, Findings, duplicates, examine
from senet.prepare.page import page
from senet.prepare.writing import each, part_of, progress, put

FORMAT = 1
CHUNK = 64  # images in a job
PIXELS = 64 << 20  # decoded at once by DALI, if it is more than one image
IMAGENET = Path(__file__).with_name("imagenet_class_index.json")
Job = tuple[int, Index, bool]  # the first image, its images, whether there is DALI
Result = tuple[int, NDArray[Any], dict[int, dict[str, Any]]]


def audit(root: Path, processes: int | None = None) -> int:
    """Read every image of ROOT, say what was found, and keep it in ROOT; returns an exit code.

    It heeds no earlier audit or list. Raises UsageError for what is wrong with the folders or shards as a whole.
    """
    began = time.monotonic()
    splits = [split for split in ("train", "val") if find_shards(root, split) or (root / split).is_dir()]
    if not splits:
        listing(root, "train")  # says what is amiss
    try:
        found = {split: _list(root, split) for split in splits}
        for split, findings in found.items():
            _examine_all(split, findings, processes)
        result = _result(found) | {"seconds": round(time.monotonic() - began, 1)}
        text = page(root, result).encode(errors="backslashreplace")  # names of files may be any bytes
        put(root / "audit.txt", text)
        put(root / "audit.json", json.dumps(result, indent=1).encode() + b"\n")
    except OSError as error:
        raise UsageError(
            f"{error.filename or root}: {error.strerror or error}; an audit lists all of DIR, and writes into it"
        ) from None
    print(text.decode(), end="")
    return 0


def _list(root: Path, split: str) -> Findings:
    """A split with nothing found yet; its list is kept for training."""
    unchanged = stamp(root, split)
    shards = find_shards(root, split)
    index = scan_shards(root, shards) if shards else scan_folder(root, split)
    index.save(index_file(root, split), unchanged)
    hidden, others = ([], []) if shards else _ignored(root, split)
    return Findings(index, np.zeros(len(index), FINDING), hidden=hidden, not_images=others)


def _ignored(root: Path, split: str) -> tuple[list[str], list[str]]:
    """What lies in the folders and is not used: hidden files and folders, and what is no image by its ending."""
    base = root / split
    classes = class_folders(base)[0]
    with os.scandir(base) as entries:
        found = [entry.name for entry in entries if entry.name not in classes]
    for name in classes:
        with os.scandir(base / name) as entries:
            found += [
                f"{name}/{e.name}" for e in entries if e.name.startswith(".") or not e.name.lower().endswith(ENDINGS)
            ]
    names = sorted(f"{split}/{name}" for name in found)
    hidden = [name for name in names if "/." in name]
    return hidden, [name for name in names if "/." not in name]


def _examine_all(split: str, findings: Findings, processes: int | None) -> None:
    index, with_dali = findings.index, has_dali()
    spans = (np.arange(start, min(start + CHUNK, len(index))) for start in range(0, len(index), CHUNK))
    jobs = ((int(span[0]), part_of(index, span), with_dali) for span in spans)
    with progress(f"auditing {split}", len(index)) as bar:
        for start, rows, bad in each(_examine, jobs, processes):
            findings.rows[start : start + len(rows)] = rows
            findings.bad |= bad
            bar.update(len(rows))


def _examine(job: Job) -> Result:
    start, images, with_dali = job
    rows = np.zeros(len(images), FINDING)
    reasons: dict[int, list[str]] = {}
    contents: dict[int, bytes] = {}  # that DALI is asked to decode
    with _quiet():
        for image in range(len(images)):
            try:
                content = images.read(image)
            except OSError as error:
                reasons[image] = [f"cannot be read: {error.strerror or error}"]
                continue
            rows[image], reason = examine(content, images.names[image])
            if reason:
                reasons[image] = [reason]
            if rows[image]["height"]:
                contents[image] = content
        for image in _dali_failures(contents, rows) if with_dali else ():
            reasons.setdefault(image, []).append("DALI cannot decode it")
    return start, rows, {start + image: _entry(images, image, "; ".join(why)) for image, why in reasons.items()}


def _dali_failures(contents: dict[int, bytes], rows: NDArray[Any]) -> Iterator[int]:
    pixels = rows["height"].astype(np.int64) * rows["width"]
    batch: list[int] = []
    for image in [*contents, None]:
        if batch and (image is None or pixels[[*batch, image]].sum() > PIXELS):
            fails = _probe().failures([contents[i] for i in batch])
            yield from (i for i, failed in zip(batch, fails, strict=True) if failed)
            batch = []
        if image is not None:
            batch.append(image)


def _entry(images: Index, image: int, reason: str) -> dict[str, Any]:
    """What audit.json says of an undecodable image; the file's size and time tell when it was mended."""
    file = images.names[image] if images.places is None else images.archives[images.places[image, 0]]
    try:
        status = (images.root / file).stat()
        return {"reason": reason, "file": file, "bytes": status.st_size, "modified_ns": status.st_mtime_ns}
    except OSError:
        return {"reason": reason, "file": file, "bytes": 0, "modified_ns": 0}


@lru_cache(maxsize=1)
def _probe() -> Any:
    from senet.prepare.dali_probe import Probe

    return Probe()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what PIL warns of, and what decoders' libraries write to stderr: the findings say it."""
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
    splits = list(found.values())
    groups = duplicates(splits)
    names = [[splits[split].name(image) for split, image in group] for group in groups]
    summaries = {}
    for number, (split, findings) in enumerate(found.items()):
        summaries[split] = findings.summary(
            [name for name, group in zip(names, groups, strict=True) if number in dict(group)]
        )
    return {
        "format": FORMAT,
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "decoders": {"pil": version("pillow"), "dali": _dali_version()},
        "splits": summaries,
        "duplicates_in_both_splits": sum(len(dict(group)) > 1 for group in groups),
        "duplicates_of_two_classes": sum(
            len({int(splits[s].index.labels[i]) for s, i in group}) > 1 for group in groups
        ),
        "class_list": _class_list(splits[0]),
    }


def _dali_version() -> str | None:
    if not has_dali():
        return None
    from senet.prepare.dali_probe import VERSION

    return str(VERSION)


def _class_list(findings: Findings) -> dict[str, Any]:
    """Shards may know their classes by number only: then there is no hash."""
    names = sorted(findings.index.classes)
    wnids = {wnid for wnid, _ in json.loads(IMAGENET.read_text()).values()}
    return {
        "count": len(findings.classes()),
        "sha256": hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest() if names else None,
        "is_imagenet": set(names) == wnids,
    }
