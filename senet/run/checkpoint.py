"""Checkpoint files: whole or not there, checked before they are believed. What is in one is written and read here only.

A checkpoint is `step-00001234.pt`: tensors and plain containers, as torch writes them, and a seal with position,
validation errors and a checksum (`senet.system.seal`), for torch does not notice flipped bytes. It is written under a
temporary name, synced and renamed. What shall outlive the pruning has further names; best.pt comes first of all, so
that there is no moment at which a newer checkpoint is there and a better one is not best.pt.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from senet.errors import DiskError, UsageError
from senet.system import faults, seal
from senet.system.files import free_name, replace
from senet.system.run_folder import CheckpointFolder, RunFolder, facts_of

FORMAT = 2

log = logging.getLogger(__name__)


class Invalid(Exception):
    """A file that cannot be trusted as a checkpoint; the message says why."""


class Unverified(Invalid):
    """A file whose checksum is missing, or does not fit."""


@dataclass(frozen=True)
class Progress:
    """How far a run has come."""

    global_step: int = 0  # steps since the run began
    epoch: int = 0  # whole epochs that are done ...
    step: int = 0  # ... and steps of the current one
    images: int = 0  # seen since the run began


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
    losses: list[float] = field(default_factory=list)  # of the validations so far, one an epoch
    bad: dict[str, str] = field(default_factory=dict)  # undecodable images that the log names: path -> reason
    images: str = ""  # fingerprint of the training images ...
    val_images: str = ""  # ... and of those of the validation
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
        try:
            progress = Progress(**_known(Progress, content["progress"]))
            return cls(**_known(cls, content) | {"progress": progress})
        except (TypeError, KeyError) as error:
            raise Invalid(f"incomplete: {error}") from None


def _known(kind: Any, content: Mapping[str, Any]) -> dict[str, Any]:
    return {part.name: content[part.name] for part in fields(kind) if part.name in content}


# ------------------------------------------------------------------------------------------------------------- writing


def write(payload: Payload, errors: Mapping[str, float], names: Sequence[Path]) -> None:
    """Write a checkpoint under the first of its `names` and give it the others. Its seal has its position and the
    validation `errors`. What has one of the names and is not of this program is put aside. Raises OSError: disk full.
    """
    for name in names:
        if name.exists() and not facts_of(name):
            put_aside(name)
    progress = payload.progress
    facts: dict[str, Any] = {"step": progress.global_step, "epoch": progress.epoch, "epoch_step": progress.step}
    facts |= {"val_images": payload.val_images, "time": time.time(), **errors}

    def fill(temporary: Path) -> None:
        # Through a file of our own: torch's writer makes a RuntimeError of a full disk.
        with temporary.open("wb") as file:
            sealing = seal.Sealing(file)
            torch.save(payload.to_dict(), cast(BinaryIO, sealing))
            sealing.seal(facts)

    replace(names[0], fill, lambda phase: faults.meet(phase, progress.global_step))
    for name in names[1:]:
        link(names[0], name)
    faults.meet("names", progress.global_step)


def link(path: Path, name: Path) -> None:
    """Give a checkpoint another name, or have a copy of it there. Raises OSError."""

    def fill(temporary: Path) -> None:
        try:
            os.link(path, temporary)
        except OSError:  # not all file systems have links; a full one says so again
            shutil.copyfile(path, temporary)

    replace(name, fill)


def prune(folder: CheckpointFolder, keep: int, step: int) -> None:
    """Remove all but the newest `keep` of our checkpoints of steps up to `step`, at least one. Raises OSError."""
    for path in [path for path in folder.of_steps() if path <= folder.of_step(step)][max(keep, 1) :]:
        if facts_of(path):
            path.unlink()


# ------------------------------------------------------------------------------------------------------------- reading


def read(path: Path, verify: bool = True) -> Payload:
    """Return the payload of a checkpoint, its checksum verified unless told otherwise. Raises Invalid with the reason,
    and DiskError if the file is there and cannot be read.
    """
    try:
        if verify:
            seal.check(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except seal.Broken as error:
        raise Unverified(str(error)) from None
    except FileNotFoundError:
        raise Invalid("no such file") from None
    except OSError as error:
        raise DiskError(f"{path}: cannot be read: {error.strerror or error}; try again, or move it away") from None
    except Exception as error:
        raise Invalid(f"torch cannot read it: {' '.join(str(error).split())[:200]}") from None
    return Payload.from_dict(content)


def newest(folder: CheckpointFolder, before: int | None = None) -> tuple[Path, Payload] | None:
    """Return the newest valid checkpoint (of a step `before` that one, if given) under whatever name; None if there is
    nothing in the folder.

    Newer ones are put aside, and a warning says why they were refused. Raises UsageError if there is something in the
    folder, but no valid checkpoint: starting over would overwrite it.
    """
    refused = []
    for step, path in folder.newest_first():
        try:
            if before is not None and step >= before:
                raise Invalid(f"not before step {before}")
            payload = read(path)
        except Invalid as error:
            log.warning("%s: refused: %s", path, error)
            refused.append(path)
            continue
        for other in refused:  # out of the way of what is still to be written, but not lost
            put_aside(other)
        return path, payload
    if others := folder.others():
        away = shlex.join(["mv", str(folder.path), str(free_name(folder.path))])
        there = f"{others[0].name} and all in all {len(others)} files"
        raise UsageError(f"{folder.path}: no valid checkpoint, but {there}; use another --out, or begin anew: {away}")
    return None


def put_aside(path: Path) -> Path:
    """Give a checkpoint a name under which it stays, and return that."""
    name = free_name(path.with_name(path.name + ".refused"))
    path.rename(name)
    return name


def locate(path: Path) -> Path:
    """Return the checkpoint that is meant: a file, or a run folder's best or newest one. Raises UsageError."""
    if path.is_dir():
        inside = RunFolder(path).checkpoints
        folder = inside if inside.path.is_dir() else CheckpointFolder(path)
        found = [folder.best] if folder.best.exists() else [path for _, path in folder.newest_first()]
        if not found:
            raise UsageError(f"{path}: neither checkpoints nor model.safetensors in it; give the --out folder of a run")
        return found[0]
    if not path.exists():
        remedy = "give one, the --out folder of a run, a file of weights, or timm:NAME"
        raise UsageError(f"{path}: no such checkpoint; {remedy}")
    return path
