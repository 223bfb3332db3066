"""Which images were really trained on, for drills: with SENET_LEDGER=FOLDER each rank writes down the keys of every
micro-batch.

A step that was repeated after a fault is there more than once; its last time counts, for that is what the weights come
from.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TextIO

from senet.data.loader import Batch
from senet.train.hooks import Hooks


class Ledger(Hooks):
    """Writes down the images of one rank if SENET_LEDGER is set; `tests.drills.ledger` reads them."""

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
