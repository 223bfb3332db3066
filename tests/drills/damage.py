"""What can befall a checkpoint file, each kind with the reason that the trainer must give for refusing it."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.drills.sandbox import Broken

SIGN = "code-was-run"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def foreign(path: Path) -> None:
    torch.save({"state_dict": {"weight": torch.zeros(3)}}, path)
    _sign(path)


def future(path: Path) -> None:
    payload = torch.load(path, weights_only=True)
    torch.save(payload | {"format": 99}, path)
    _sign(path)


def unfinished(path: Path) -> None:
    _manifest(path).unlink()


def poisoned(path: Path) -> None:
    """A pickle that would run code when loaded the old way."""

    class Poison:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
            return os.mkdir, (str(path.with_name(SIGN)),)

    path.write_bytes(pickle.dumps(Poison()))
    _sign(path)


def check_poison(out: Path) -> None:
    if (out / "checkpoints" / SIGN).exists():
        raise Broken("the code in the checkpoint was run")


KINDS: tuple[tuple[str, Callable[[Path], None], str], ...] = (
    ("truncated", truncate, "truncated or overwritten"),
    ("with a flipped bit", flip, "its bytes have changed"),
    ("empty", empty, "0 bytes instead of"),
    ("replaced by another program's", foreign, "not a checkpoint of this program"),
    ("of a future version", future, "this version reads format"),
    ("without its manifest", unfinished, "no manifest beside it"),
    ("a pickle with code in it", poisoned, "torch cannot read it"),
)


def _manifest(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _sign(path: Path) -> None:
    """Make the manifest fit."""
    file = _manifest(path)
    content = path.read_bytes()
    facts = json.loads(file.read_text()) | {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    file.write_text(json.dumps(facts))
