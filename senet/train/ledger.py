"""Which images were really trained on, for drills: with SENET_LEDGER=FOLDER each rank writes down the keys of every
micro-batch.

A step that was repeated after a fault is there more than once; its last time counts, for that is what the weights come
from.
"""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, TextIO

from senet.data.loader import Batch
from senet.train.hooks import Hooks


class Ledger(Hooks):
    """Writes down the images of one rank if SENET_LEDGER is set; does nothing otherwise."""

    def __init__(self, rank: int, micro_batches: int) -> None:
        """`micro_batches`: of one step, over all ranks."""
        self.rank, self.micro_batches = rank, micro_batches
        self.file: TextIO | None = None
        if folder := os.environ.get("SENET_LEDGER"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.file = (Path(folder) / f"rank-{rank}.jsonl").open("a")

    def before_compute(self, step: int, micro: int, batch: Batch) -> None:
        if self.file is not None and batch.keys is not None:
            # Monotonic, so that a jump of the clock does not reorder it; on Linux it is one clock for all processes.
            entry = {"step": step, "rank": self.rank, "micro": micro, "of": self.micro_batches}
            entry |= {"at": time.monotonic_ns(), "keys": batch.keys.tolist()}
            self.file.write(json.dumps(entry) + "\n")
            self.file.flush()


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
