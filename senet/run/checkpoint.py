"""Checkpoint files: whole or not there, checked before they are believed.

A checkpoint is `step-00001234.pt` (tensors and plain containers, read with `weights_only`) and its manifest
`step-00001234.pt.json` (size, sha256, position, validation errors). Each is written under a temporary name, synced and
renamed, the manifest last: a checkpoint without one is not a checkpoint. `torch.load` does not notice flipped bytes;
the sha256 does.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from senet.errors import UsageError
from senet.system import faults
from senet.system.files import replace, sync, write_text

FORMAT = 1
BEST = "best.pt"
TIMED = "timed"  # kept for its time


class Invalid(Exception):
    """A file that cannot be trusted as a checkpoint; the message says why."""


def write(folder: Path, step: int, payload: dict[str, Any], facts: dict[str, Any]) -> Path:
    """Write the checkpoint of `step` and return its path. `facts` go to the manifest. Raises OSError (disk
    full, say).
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.pt"
    replace(
        path, lambda temporary: _save({"format": FORMAT, **payload}, temporary), lambda phase: faults.meet(phase, step)
    )
    manifest = {"format": FORMAT, "bytes": path.stat().st_size, "sha256": _sha256(path), "step": step, **facts}
    write_text(_manifest(path), json.dumps(manifest, indent=1))
    faults.meet("manifest", step)
    return path


def _save(payload: dict[str, Any], path: Path) -> None:
    # Through a file of our own: torch's writer makes a RuntimeError of a full disk.
    with path.open("wb") as file:
        torch.save(payload, file)


def mark(path: Path, name: str) -> None:
    """Make `name` (best.pt, say) beside it a second name of this checkpoint, which outlives the retention."""
    for source, target in ((path, path.with_name(name)), (_manifest(path), _manifest(path.with_name(name)))):
        temporary = target.with_name(target.name + ".tmp")
        temporary.unlink(missing_ok=True)
        os.link(source, temporary)
        os.replace(temporary, target)
    sync(path.parent)


def hours_since(folder: Path, name: str) -> float:
    """Since the newest `name`-*.pt was written, by the file system's clock; infinity where there is none."""
    written = max((path.stat().st_mtime for path in folder.glob(f"{name}-*.pt")), default=-math.inf)
    return (time.time() - written) / 3600


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` numbered checkpoints (at least one) and what broken writes left behind."""
    for path in _numbered(folder)[max(keep, 1) :]:
        _manifest(path).unlink(missing_ok=True)
        path.unlink()
    for rest in folder.glob("*.tmp"):
        rest.unlink()


def read(path: Path) -> dict[str, Any]:
    """The payload of a checkpoint, its manifest checked. Raises Invalid with the reason."""
    try:
        manifest = json.loads(_manifest(path).read_text())
        size, digest = manifest["bytes"], manifest["sha256"]
    except FileNotFoundError:
        raise Invalid("no manifest beside it: it was never finished, or was moved without its .json") from None
    except (ValueError, KeyError, TypeError):
        raise Invalid("its manifest is damaged") from None
    if path.stat().st_size != size:
        raise Invalid(f"{path.stat().st_size} bytes instead of {size}: truncated or overwritten")
    if _sha256(path) != digest:
        raise Invalid("its bytes have changed since it was written (sha256)")
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise Invalid(f"torch cannot read it: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(payload, dict) or "format" not in payload:
        raise Invalid("not a checkpoint of this program")
    if payload["format"] != FORMAT:
        raise Invalid(f"format {payload['format']}; this version reads format {FORMAT}")
    return payload


def newest(folder: Path, say: Callable[[str], None], before: int | None = None) -> tuple[Path, dict[str, Any]] | None:
    """The newest valid checkpoint in `folder`, saying which were refused and why; None where there is none at all.

    `before`: of those of earlier steps only; later ones are put aside as if refused.

    Raises UsageError when there are checkpoints but not one is valid: starting over would overwrite them.
    """
    paths = _numbered(folder)
    for number, path in enumerate(paths):
        try:
            if before is not None and int(path.stem.removeprefix("step-")) >= before:
                raise Invalid(f"not before step {before}")
            payload = read(path)
        except (Invalid, OSError) as error:
            say(f"{path}: refused: {error}")
            continue
        for refused in paths[:number]:  # out of the way of retention, but not lost
            refused.rename(refused.with_name(refused.name + ".refused"))
            _manifest(refused).unlink(missing_ok=True)
        return path, payload
    if any(_manifest(path).exists() for path in paths):
        raise UsageError(
            f"{folder}: none of its {len(paths)} checkpoints is valid; move the folder away to start "
            "over, or use another --out"
        )
    return None


def find(path: Path) -> Path:
    """The checkpoint that a path means: the file, or the best (else the newest) one of a run folder."""
    if path.is_dir():
        folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
        best = folder / BEST
        found = [best] if best.exists() else _numbered(folder)
        if not found:
            raise UsageError(f"{path}: no checkpoint in this folder; give a .pt file or the --out folder of a run")
        return found[0]
    if not path.exists():
        raise UsageError(f"{path}: no such checkpoint; give a .pt file, the --out folder of a run, or timm:NAME")
    return path


def _numbered(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.pt"), reverse=True)


def _manifest(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()
