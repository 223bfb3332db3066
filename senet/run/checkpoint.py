"""Checkpoint files: whole or not there, checked before they are believed. What is in one is written and read here only.

A checkpoint is `step-00001234.pt` (tensors and plain containers, read with `weights_only`) and its manifest
`step-00001234.pt.json` (size, sha256, position, validation errors). Each is written under a temporary name, synced and
renamed, the manifest last: a checkpoint without one is not a checkpoint. `torch.load` does not notice flipped bytes;
the sha256 does.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from senet.errors import UsageError
from senet.system import faults
from senet.system.files import replace, write_text
from senet.system.run_folder import CheckpointFolder, RunFolder, manifest

FORMAT = 2

log = logging.getLogger(__name__)


class Invalid(Exception):
    """A file that cannot be trusted as a checkpoint; the message says why."""


@dataclass(frozen=True)
class Progress:
    """How far a run has come."""

    global_step: int = 0  # steps since the run began
    epoch: int = 0  # whole epochs that are done ...
    step: int = 0  # ... and steps of the current one
    images: int = 0  # seen since the run began
    best: Mapping[str, float] = field(default_factory=dict)  # epoch and validation errors of the best one


@dataclass(frozen=True)
class Payload:
    """The contents of a checkpoint. Tensors and plain containers only; a new field needs a default."""

    progress: Progress
    net: dict[str, Tensor]  # the state to evaluate: BN statistics are the mean over ranks
    optimiser: dict[str, Any] = field(default_factory=dict)
    statistics: Tensor | None = None  # [ranks, n], the BN statistics of each rank, for an exact resume
    scaler: dict[str, Any] = field(default_factory=dict)
    hooks: dict[str, Any] = field(default_factory=dict)  # by the name of the hook's class
    meters: list[Tensor] = field(default_factory=list)  # since the last record, since the epoch began; over all ranks
    skipped: list[list[int]] = field(default_factory=list)  # stretches of steps, first and last, left out for good
    bad: dict[str, str] = field(default_factory=dict)  # undecodable images that the log names: path -> reason
    images: str = ""  # fingerprint of the training images
    pixels: dict[str, Any] = field(default_factory=dict)  # how validation pixels are made
    config: dict[str, Any] = field(default_factory=dict)
    execution: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def map(self, change: Callable[[Tensor], Tensor]) -> Payload:
        """Return a copy with `change` applied to every tensor; the containers are copied, too."""
        return Payload(**tree_map_only(Tensor, change, vars(self)))

    @property
    def nbytes(self) -> int:
        return sum(leaf.nbytes for leaf in tree_leaves(vars(self)) if isinstance(leaf, Tensor))

    def to_dict(self) -> dict[str, Any]:
        """Return what is written: plain containers."""
        return {"format": FORMAT, **vars(self), "progress": asdict(self.progress)}

    @classmethod
    def from_dict(cls, content: Any) -> Payload:
        """The inverse of `to_dict`. Raises Invalid for anything else."""
        if not isinstance(content, dict) or "format" not in content:
            raise Invalid("not a checkpoint of this program")
        if content["format"] != FORMAT:
            raise Invalid(f"format {content['format']}; this version reads format {FORMAT}")
        known = {f.name: content[f.name] for f in fields(cls) if f.name in content}
        try:
            return cls(**{**known, "progress": Progress(**known["progress"])})
        except (TypeError, KeyError) as error:
            raise Invalid(f"incomplete: {error}") from None


# ------------------------------------------------------------------------------------------------------------- writing


def write(folder: CheckpointFolder, payload: Payload, errors: Mapping[str, float]) -> Path:
    """Write a checkpoint and return its path. The validation `errors` go to the manifest. Raises OSError: disk full."""
    progress = payload.progress
    folder.path.mkdir(parents=True, exist_ok=True)
    path = folder.of_step(progress.global_step)
    replace(path, lambda temporary: _save(payload, temporary), lambda phase: faults.meet(phase, progress.global_step))
    facts = {"format": FORMAT, "bytes": path.stat().st_size, "sha256": _sha256(path), "step": progress.global_step}
    facts |= {"epoch": progress.epoch, "epoch_step": progress.step, **errors}
    write_text(manifest(path), json.dumps(facts, indent=1))
    faults.meet("manifest", progress.global_step)
    return path


def _save(payload: Payload, path: Path) -> None:
    # Through a file of our own: torch's writer makes a RuntimeError of a full disk.
    with path.open("wb") as file:
        torch.save(payload.to_dict(), file)


def link(path: Path, name: Path) -> None:
    """Make `name` (best.pt, say) a second name of a checkpoint and its manifest, which outlives the pruning."""
    for source, target in ((path, name), (manifest(path), manifest(name))):
        replace(target, lambda temporary, source=source: os.link(source, temporary))  # type: ignore[misc]


def prune(folder: CheckpointFolder, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints of steps (at least one) and what broken writes left behind."""
    for path in folder.of_steps()[max(keep, 1) :]:
        manifest(path).unlink(missing_ok=True)
        path.unlink()
    for rest in folder.path.glob("*.tmp"):
        rest.unlink()


# ------------------------------------------------------------------------------------------------------------- reading


def read(path: Path) -> Payload:
    """Return the payload of a checkpoint, its manifest checked. Raises Invalid with the reason."""
    try:
        facts = json.loads(manifest(path).read_text())
        size, digest = facts["bytes"], facts["sha256"]
    except FileNotFoundError:
        raise Invalid("no manifest beside it: it was never finished, or was moved without its .json") from None
    except (ValueError, KeyError, TypeError):
        raise Invalid("its manifest is damaged") from None
    if path.stat().st_size != size:
        raise Invalid(f"{path.stat().st_size} bytes instead of {size}: truncated or overwritten")
    if _sha256(path) != digest:
        raise Invalid("its bytes have changed since it was written (sha256)")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise Invalid(f"torch cannot read it: {' '.join(str(error).split())[:200]}") from None
    return Payload.from_dict(content)


def newest(folder: CheckpointFolder, before: int | None = None) -> tuple[Path, Payload] | None:
    """Return the newest valid checkpoint (of a step `before` that one, if given); None if there is none at all.

    Newer ones are put aside under another name, and a warning says why they were refused. Raises UsageError if there
    are checkpoints but not one is valid: starting over would overwrite them.
    """
    paths = folder.of_steps()
    for number, path in enumerate(paths):
        try:
            if before is not None and path >= folder.of_step(before):
                raise Invalid(f"not before step {before}")
            payload = read(path)
        except (Invalid, OSError) as error:
            log.warning("%s: refused: %s", path, error)
            continue
        for refused in paths[:number]:  # out of the way of pruning, but not lost
            refused.rename(refused.with_name(refused.name + ".refused"))
            manifest(refused).unlink(missing_ok=True)
        return path, payload
    if any(manifest(path).exists() for path in paths):
        raise UsageError(
            f"{folder.path}: none of its {len(paths)} checkpoints is valid; move the folder away to start over, or "
            "use another --out"
        )
    return None


def locate(path: Path) -> Path:
    """Return the checkpoint that a path means: the file, or the best (otherwise the newest) one of a run folder.

    Raises UsageError if there is none.
    """
    if path.is_dir():
        inside = RunFolder(path).checkpoints
        folder = inside if inside.path.is_dir() else CheckpointFolder(path)
        found = [folder.best] if folder.best.exists() else folder.of_steps()
        if not found:
            raise UsageError(f"{path}: no checkpoint in this folder; give a .pt file or the --out folder of a run")
        return found[0]
    if not path.exists():
        raise UsageError(f"{path}: no such checkpoint; give a .pt file, the --out folder of a run, or timm:NAME")
    return path


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()
