"""What can befall a checkpoint file: each kind with the reason that the trainer must give for refusing it."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

SIGN = "code-was-run"  # a folder beside the checkpoint


def manifest(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def future(path: Path) -> None:
    torch.save(torch.load(path, weights_only=True) | {"format": 99}, path)


def poisoned(path: Path) -> None:
    """A pickle that would run code if it were loaded the old way."""

    class Poison:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
            return os.mkdir, (str(path.with_name(SIGN)),)

    path.write_bytes(pickle.dumps(Poison()))


def signed(harm: Callable[[Path], object]) -> Callable[[Path], None]:
    """Make the manifest fit after the harm."""

    def act(path: Path) -> None:
        harm(path)
        facts = {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        manifest(path).write_text(json.dumps(json.loads(manifest(path).read_text()) | facts))

    return act


KINDS: tuple[tuple[str, Callable[[Path], object], str], ...] = (
    ("truncated", lambda path: os.truncate(path, path.stat().st_size // 2), "truncated or overwritten"),
    ("with a flipped bit", flip, "its bytes have changed"),
    ("empty", lambda path: path.write_bytes(b""), "0 bytes instead of"),
    (
        "replaced by another program's",
        signed(lambda path: torch.save({"net": 0}, path)),
        "not a checkpoint of this program",
    ),
    ("of a future version", signed(future), "this version reads format"),
    ("without its manifest", lambda path: manifest(path).unlink(), "no manifest beside it"),
    ("a pickle with code in it", signed(poisoned), "torch cannot read it"),
)
