"""What several test files share: images, programs started as a person starts them, run folders read and compared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from senet.run import checkpoint
from senet.system.run_folder import RunFolder
from tests.preloaded import Preloaded, Program

ROOT = Path(__file__).resolve().parent.parent
TINY = {
    "net": {"block": "basic", "blocks": [1, 1], "widths": [8, 16], "expansion": 1, "dropout": 0.1, "se": {"ratio": 4}},
    "data": {"classes": 3, "crop": 32, "resize": 40},
    "optim": {"lr": 0.05},
    "schedule": {"milestones": []},
    "batch": 12,
    "epochs": 2,
}
CLOCK = ("seconds", "images_per_second", "data_wait", "validation_seconds")  # the fields of a record that are times


# --------------------------------------------------------------------------------------------------------------- images


def draw(path: Path, generator: np.random.Generator, tint: int) -> None:
    """Save a JPEG of blocks, most of them in one of three colours."""
    height, width = (int(n) for n in generator.integers(50, 120, 2))
    blocks = generator.integers(0, 200, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    blocks[..., tint] += 50
    Image.fromarray(blocks).resize((width, height), Image.Resampling.BICUBIC).save(path, quality=92)


def make_set(root: Path, train: int, val: int) -> Path:
    """Draw three classes in ImageNet's layout, `train` and `val` images in all, and return `root`."""
    generator = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for number in range(count):
            folder = root / split / f"class{number % 3}"
            folder.mkdir(parents=True, exist_ok=True)
            draw(folder / f"{number:03}.JPEG", generator, number % 3)
    return root


# ------------------------------------------------------------------------------------------------------------- programs


def command(module: str, *words: object, ranks: int = 1, restarts: int = 0) -> list[str]:
    """Return the command line of a program, a module or a file of Python: under torchrun if it has several ranks."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    torchrun += [f"--max-restarts={restarts}"] * (restarts > 0)
    program = [module] if module.endswith(".py") else ["-m", module]
    return [sys.executable, *(torchrun if ranks > 1 else []), *program, *map(str, words)]


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a program: one thread, no W&B unless there is a key in `more`, and `more`."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "SENET"))}
    tracked = {} if "WANDB_API_KEY" in more else {"WANDB_MODE": "disabled"}  # otherwise wandb is asked for a login
    return kept | {"OMP_NUM_THREADS": "1", "NETRC": "/nonexistent", "PYTHONUNBUFFERED": "1"} | tracked | more


PRELOADED = Preloaded(ROOT, environment())


def run(
    module: str,
    *words: object,
    ranks: int = 1,
    restarts: int = 0,
    torchrun: bool = False,
    timeout: float = 300,
    preloaded: Preloaded = PRELOADED,
    **more: str,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end and return its exit code and output; `more` is added to its environment.

    Several ranks are under torchrun if they are to restart or the test is about how they are started. All are forked
    from `preloaded` unless their environment needs another start.
    """
    env, elastic = environment(**more), torchrun or restarts > 0
    if preloaded.suits(env):
        program = forked(command(module, *words, ranks=ranks if elastic else 1, restarts=restarts))
        return preloaded.run(*program, env, 1 if elastic else ranks, timeout)
    start = command(module, *words, ranks=ranks, restarts=restarts)
    return subprocess.run(start, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout, check=False)


def forked(command: list[str]) -> tuple[str, list[str]]:
    """Return the module, or file, of a command line of Python, and its words."""
    module, *words = command[2:] if command[1] == "-m" else command[1:]
    return module, words


def run_text(text: str, folder: Path, *words: object, ranks: int = 1, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a program that is written in `folder` to its end; see `run`."""
    file = folder / "program.py"
    file.write_text(text)
    return run(str(file), *words, ranks=ranks, **more)


def start_text(text: str, said: Path, *words: object, **more: str) -> Program:
    """Start a program, written beside the file `said`, into which goes all that it prints; see `run`."""
    file = said.with_suffix(".py")
    file.write_text(text)
    return PRELOADED.start(str(file), [*map(str, words)], environment(**more), said, said)


def until(holds: Callable[[], object], what: str = "it", seconds: float = 300) -> None:
    """Wait until `holds()` is true, and fail after so many seconds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.01)


# ---------------------------------------------------------------------------------------------------------- run folders


def final(out: Path) -> dict[str, Any]:
    """Return the payload of a run folder's last checkpoint, whole."""
    return checkpoint.read(RunFolder(out).checkpoints.of_steps()[0]).to_dict()


def lines(out: Path, **like: Any) -> list[dict[str, Any]]:
    """Return the records of a run's log whose fields are as in `like`, whole and in order."""
    logged = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [record for record in logged if all(record.get(key) == value for key, value in like.items())]


def events(out: Path) -> list[dict[str, Any]]:
    """Return what a run's log notes beside its figures: starts, warnings, steps that were left out."""
    return lines(out, kind="event")


def records(out: Path) -> list[dict[str, Any]]:
    """Return the figures of a run's log, without times and events: what two equal runs have in common."""
    return [
        {key: value for key, value in line.items() if key not in CLOCK}
        for line in lines(out)
        if line["kind"] != "event"
    ]


# ----------------------------------------------------------------------------------------------------------- comparison


def differences(one: Any, other: Any, where: str = "") -> Iterator[str]:
    """Yield where two trees of containers and tensors are not the same to the bit."""
    if type(one) is not type(other):
        yield f"{where}: {type(one).__name__} instead of {type(other).__name__}"
    elif isinstance(one, torch.Tensor):
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            yield f"{where}: {one.dtype} {tuple(one.shape)} instead of {other.dtype} {tuple(other.shape)}"
        elif not torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8)):
            yield f"{where}: other values"
    elif isinstance(one, dict):
        for key in [*one, *(key for key in other if key not in one)]:
            if key not in one or key not in other:
                yield f"{where}.{key}: in one only"
            else:
                yield from differences(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        if len(one) != len(other):
            yield f"{where}: {len(one)} instead of {len(other)}"
        for number, pair in enumerate(zip(one, other, strict=False)):
            yield from differences(*pair, f"{where}[{number}]")
    elif one != other:
        yield f"{where}: {one!r} instead of {other!r}"


def assert_same(one: Any, other: Any) -> None:
    """Assert that two trees of containers and tensors are the same to the bit."""
    assert list(differences(one, other)) == []


def not_finite(tree: Any, where: str = "") -> list[str]:
    """Return the names of the tensors in a tree that hold numbers which are not finite."""
    if isinstance(tree, torch.Tensor):
        return [f"{where}: not finite"] if tree.is_floating_point() and not tree.isfinite().all() else []
    parts = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    return [text for key, part in parts for text in not_finite(part, f"{where}.{key}")]
