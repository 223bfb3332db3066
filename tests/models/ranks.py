"""What each of two ranks does in tests/models/test_families.py: it prints one line of JSON."""

from __future__ import annotations

import json
import os
from typing import Any

import torch

from senet import distributed
from senet.data.source import Source, train_loader
from senet.execution.execution import Execution
from senet.train.meter import Meter
from senet.train.trainer import Trainer
from tests.helpers import differences
from tests.models.test_families import SMALL, small


def trained(name: str, world: distributed.World, state: Any = None, steps: int = 2) -> Any:
    """Train to the end of step `steps`, from `state` after the first step if it is given, and return the state."""
    config = small(name, ratio=4)
    trainer = Trainer.build(config, world, Execution())
    first = 0
    if state is not None:
        first = 1
        trainer.net.load_state_dict(state["net"])
        trainer.optimiser.load_state_dict(state["optimiser"])
    loader = train_loader(
        config.data, Source(None), config.batch, 4, 0, world.rank, world.size, world.device, torch.float32
    )
    meter = Meter(world.device)
    for done in trainer.steps(loader, 0, first, meter):
        if done == steps:
            break
    return {"net": trainer.net.state_dict(), "optimiser": trainer.optimiser.state_dict(), "sums": meter.sums}


def compared(name: str, world: distributed.World) -> str:
    """Return how a run that was stopped after its first step differs from one that was not, and rank 1 from rank 0."""
    whole, half = trained(name, world), trained(name, world, steps=1)
    resumed = trained(name, world, half)
    resumed["sums"] = resumed["sums"] + half["sums"]
    weights = {key: value for key, value in whole["net"].items() if "running" not in key}  # BN's are a rank's own
    other = world.broadcast_object(weights)
    found = [*differences(whole, resumed, "resumed"), *differences(other, weights, "rank")]
    return "; ".join(found) or "the same"


def main() -> None:
    torch.set_num_threads(1)
    world = distributed.start("cpu")
    # In one write: print writes the end of a line by itself, and another rank may come between.
    os.write(1, (json.dumps({name: compared(name, world) for name in SMALL}) + "\n").encode())
    world.close()


if __name__ == "__main__":
    main()
