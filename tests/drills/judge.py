"""Was anything lost? Compares a disturbed run with the undisturbed one."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from tests.drills import ledger
from tests.helpers import differences, final, not_finite, records

WEIGHTS = ("net", "statistics", "optimiser", "scaler", "progress", "meters", "skipped")


def weights(out: Path, reference: Path) -> list[str]:
    """Return where anything that training has computed differs."""
    one, other = final(out), final(reference)
    return [text for part in WEIGHTS for text in differences(one[part], other[part], part)]


def finite(out: Path) -> list[str]:
    """Return the tensors of the last checkpoint that hold numbers which are not finite."""
    return not_finite(final(out))


def log(out: Path, reference: Path) -> list[str]:
    """Return where the logs differ: each interval and each validation comes once, in order, with the same figures."""
    own, other = records(out), records(reference)
    found = list(differences(own, other, "log"))
    steps = [record["step"] for record in own]
    if steps != sorted(steps):
        found.append("log: its steps do not rise")
    return found


def images(folder: Path, reference: Path | None, steps: int, batch: int, once: bool = True) -> list[str]:
    """Return what is wrong with the images trained on, which stand in the ledgers of two runs.

    Each epoch has `steps` of `batch` images, the same ones in each step as undisturbed, and each image `once`.
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
    """Return the seconds without progress around the fault: the longest gap between two batches after `since` (ns)."""
    lines = [
        line for file in folder.glob("rank-*.jsonl") for line in file.read_text().splitlines() if line.endswith("}")
    ]
    times = sorted([since] * (since > 0) + [at for line in lines if (at := json.loads(line)["at"]) >= since])
    return max((after - before for before, after in itertools.pairwise(times)), default=0) / 1e9
