"""What can befall a checkpoint file: each kind with the reason that the trainer must give for refusing it."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from senet.system import seal

SIGN = "code-was-run"  # a folder beside the checkpoint


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


def sealed(harm: Callable[[Path], object]) -> Callable[[Path], None]:
    """Make the checksum fit after the harm."""

    def act(path: Path) -> None:
        facts = seal.facts(path)
        harm(path)
        content = path.read_bytes()
        with path.open("wb") as file:
            sealing = seal.Sealing(file)
            sealing.write(content if seal.END in content else content + seal.END + bytes(18))
            sealing.seal(facts)

    return act


KINDS: tuple[tuple[str, Callable[[Path], object], str], ...] = (
    ("truncated", lambda path: os.truncate(path, path.stat().st_size // 2), "truncated or overwritten"),
    ("with a flipped bit", flip, "its bytes have changed"),
    ("empty", lambda path: path.write_bytes(b""), "(0 bytes): truncated or overwritten"),
    (
        "replaced by another program's",
        sealed(lambda path: torch.save({"net": 0}, path)),
        "not a checkpoint of this program",
    ),
    ("of a future version", sealed(future), "this version reads format"),
    ("without its checksum", future, "it has no checksum"),
    ("a pickle with code in it", sealed(poisoned), "torch cannot read it"),
)
