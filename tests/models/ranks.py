"""What each of two ranks does in tests/models/test_families.py: it prints one line of JSON."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from senet import config, distributed
from senet.config import Config
from senet.data.source import Source, train_loader
from senet.execution.execution import Execution
from senet.run.flags import Flags
from senet.run.run import Run
from senet.run.stop import Stop
from senet.train.meter import Meter
from senet.train.trainer import Trainer
from tests.helpers import ROOT, differences, final
from tests.models.test_families import SMALL, small

SHRUNK = (
    "net.blocks=[1, 1, 1, 1]", "net.widths=[8, 8, 16, 16]", "data=synthetic", "data.classes=10", "data.crop=32",
    "data.train_images=32", "data.val_images=8", "batch=8", "optim.lr=0.01",
)  # fmt: skip


def networks() -> dict[str, Config]:
    """Return small configs of all families beyond ResNets, and one of each ablation row whose network is its own."""
    rows: dict[Any, tuple[str, Config]] = {}
    for file in sorted((ROOT / "configs/ablations").glob("*.yaml")):
        for name in config.variants(file):
            settings = config.load(name, SHRUNK)
            rows.setdefault(settings.net, (name.removeprefix(f"{file.parent}/"), settings))
    return {name: small(name, ratio=4) for name in SMALL} | dict(rows.values())


def trained(config: Config, world: distributed.World, state: Any = None, steps: int = 2) -> Any:
    """Train to the end of step `steps`, from `state` after the first step if it is given, and return the state."""
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


def compared(config: Config, world: distributed.World) -> str:
    """Return how a run that was stopped after its first step differs from one that was not, and rank 1 from rank 0."""
    whole, half = trained(config, world), trained(config, world, steps=1)
    resumed = trained(config, world, half)
    resumed["sums"] = resumed["sums"] + half["sums"]
    weights = {key: value for key, value in whole["net"].items() if "running" not in key}  # BN's are a rank's own
    other = world.broadcast_object(weights)
    found = [*differences(whole, resumed, "resumed"), *differences(other, weights, "rank")]
    return "; ".join(found) or "the same"


def gone_on(config: Config, world: distributed.World, out: Path) -> str:
    """Return how a run of two epochs differs from one that ended after the first and was started again."""

    def run(name: str, epochs: int) -> Path:
        flags = Flags(out / name, name, (), Source(None), "cpu", track="none", accept_changes=True)
        assert Run(replace(config, epochs=epochs), flags, world, Stop()).train() == 0
        return flags.out

    whole, _, parts = run("whole", 2), run("parts", 1), run("parts", 2)
    ends = [final(folder) if world.is_main else {} for folder in (whole, parts)]
    compared = [{key: end.get(key) for key in ("progress", "net", "optimiser", "statistics")} for end in ends]
    return "; ".join(differences(*compared)) or "the same"


def main() -> None:
    torch.set_num_threads(1)
    world = distributed.start("cpu")
    found = {name: compared(config, world) for name, config in networks().items()}
    for name in ("shake_shake", "shake_even"):  # they draw while they train
        found[f"run of {name}"] = gone_on(networks()[name], world, Path(sys.argv[1]) / name)
    # In one write: print writes the end of a line by itself, and another rank may come between.
    os.write(1, (json.dumps(found) + "\n").encode())
    world.close()


if __name__ == "__main__":
    main()
