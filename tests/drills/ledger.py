"""What the ledgers of a run say that it was trained on (see `senet.train.ledger`)."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any


def read(folder: Path) -> tuple[dict[int, list[int]], int]:
    """Return the keys trained on in each step, over all ranks in the order of the global batch, and how many steps were
    begun more than once.
    """
    entries: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for file in folder.glob("rank-*.jsonl"):
        for line in file.read_text().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:  # torn by a kill
                continue
            entries[entry["step"]].append(entry)
    steps, repeated = {}, 0
    for step, found in sorted(entries.items()):
        found.sort(key=lambda entry: entry["at"])
        last = found[-found[-1]["of"] :]
        repeated += len(found) > len(last)
        last.sort(key=lambda entry: (entry["rank"], entry["micro"]))
        steps[step] = [key for entry in last for key in entry["keys"]]
    return steps, repeated
