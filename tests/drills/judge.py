"""Was anything lost? A disturbed run beside the undisturbed one."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from senet.run import checkpoint
from senet.train import ledger

CLOCK = ("seconds", "images_per_second", "data_wait", "validation_seconds")  # what is time in a record
WEIGHTS = ("net", "statistics", "optimiser", "scaler", "progress", "meters", "skipped")


def differences(one: Any, other: Any, where: str = "") -> Iterator[str]:
    """Where two trees of containers and tensors are not the same to the bit."""
    if type(one) is not type(other):
        yield f"{where}: {type(one).__name__} instead of {type(other).__name__}"
    elif isinstance(one, torch.Tensor):
        if not torch.equal(one, other):
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
        for place, pair in enumerate(zip(one, other, strict=False)):
            yield from differences(*pair, f"{where}[{place}]")
    elif one != other:
        yield f"{where}: {one!r} instead of {other!r}"


def final(out: Path) -> dict[str, Any]:
    """The payload of the last checkpoint, whole."""
    return checkpoint.read(max((out / "checkpoints").glob("step-*.pt")))


def weights(out: Path, reference: Path) -> list[str]:
    """Differences of everything that training has computed."""
    one, other = final(out), final(reference)
    return [text for part in WEIGHTS for text in differences(one[part], other[part], part)]


def finite(tree: Any, where: str = "") -> list[str]:
    """Tensors with numbers that are not finite."""
    if isinstance(tree, torch.Tensor):
        return [f"{where}: not finite"] if tree.is_floating_point() and not tree.isfinite().all() else []
    parts = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    return [text for key, part in parts for text in finite(part, f"{where}.{key}")]


def records(out: Path) -> list[dict[str, Any]]:
    """The log's figures, without what is time and without events."""
    return [
        {key: value for key, value in line.items() if key not in CLOCK}
        for line in _lines(out)
        if line["kind"] != "event"
    ]


def events(out: Path) -> list[dict[str, Any]]:
    return [line for line in _lines(out) if line["kind"] == "event"]


def _lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def log(out: Path, reference: Path) -> list[str]:
    """Differences of the logs: each interval and each validation once, in order, with the same figures."""
    own, other = records(out), records(reference)
    found = list(differences(own, other, "log"))
    steps = [record["step"] for record in own]
    if steps != sorted(steps):
        found.append("log: its steps do not rise")
    return found


def images(folder: Path, reference: Path | None, steps: int, batch: int, once: bool = True) -> list[str]:
    """What is wrong with the images trained on: `steps` an epoch, each image `once` an epoch, the same in each step as
    undisturbed.
    """
    used, _ = ledger.read(folder)
    found = []
    for epoch in range(max(used, default=0) // steps + 1):
        keys = [key for step in range(epoch * steps, (epoch + 1) * steps) for key in used.get(step, [])]
        if len(keys) != steps * batch:
            found.append(f"epoch {epoch + 1}: {len(keys)} images instead of {steps * batch}")
        if once and len(set(keys)) != len(keys):
            found.append(f"epoch {epoch + 1}: {len(keys) - len(set(keys))} images twice")
    if reference is not None and used != ledger.read(reference)[0]:
        found.append("other images in some steps than undisturbed")
    return found


def recovery(folder: Path, since: int) -> float:
    """Seconds without progress around the fault: the longest gap between two batches, counted from `since` on
    (monotonic nanoseconds).
    """
    lines = [
        line for file in folder.glob("rank-*.jsonl") for line in file.read_text().splitlines() if line.endswith("}")
    ]
    times = sorted([since] * (since > 0) + [at for line in lines if (at := json.loads(line)["at"]) >= since])
    return max((after - before for before, after in itertools.pairwise(times)), default=0) / 1e9
