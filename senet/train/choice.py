"""How a run computes its net, and how many images a rank takes at once: as it did before, as flags say, or as measured."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from senet.config import Config, divide_batch
from senet.durable import write_text
from senet.errors import UsageError
from senet.models.execution import Execution
from senet.train.graph import obstacle
from senet.train.tune import largest_batch, tune
from senet.world import World

FILE = "execution.json"


@dataclass(frozen=True)
class Choice:
    execution: Execution
    at_once: int  # images of a rank
    accumulate: int  # times a step


def choose(
    config: Config, world: World, out: Path, asked: Mapping[str, Any], largest: int | Literal["auto"] | None, measured: bool
) -> Choice:
    """`asked`: settings of Execution that flags name. All ranks choose alike. Raises UsageError for what cannot be done here."""
    file = out / FILE
    before = world.tell(json.loads(file.read_text()) if world.first and file.exists() else None) or {}
    kept = Execution.from_dict(before.get("execution", {}))
    execution = replace(kept, **asked)
    if largest == "auto":
        largest = before.get("at_once") or largest_batch(config, world, execution)
    at_once, accumulate = divide_batch(config.batch, world.size, largest)
    if measured and not before:
        execution = tune(config, world, at_once, accumulate)
    if execution.graph and (why := obstacle(world.device, world.size, accumulate)):
        raise UsageError(f"--graph: {why}; leave it out")
    if before and execution != kept and world.first:
        print(f"warning: computed as {execution}, before as {kept}: last bits will differ", file=sys.stderr)
    return Choice(execution, at_once, accumulate)


def keep(choice: Choice, out: Path) -> None:
    """For the next start of this run."""
    write_text(out / FILE, json.dumps({"execution": choice.execution.to_dict(), "at_once": choice.at_once}))
