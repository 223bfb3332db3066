"""How a run computes its net, and how many images a rank takes at once: as it did before, as flags say, or
as measured.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from senet.config import Config, divide_batch
from senet.distributed import World
from senet.errors import UsageError
from senet.execution.execution import Execution
from senet.system.files import write_text
from senet.train.autotune import largest_batch, tune
from senet.train.cuda_graph import obstacle

FILE = "execution.json"


@dataclass(frozen=True)
class Choice:
    execution: Execution
    micro_batch: int  # images of a rank
    accumulate: int  # times a step


def choose(
    config: Config,
    world: World,
    out: Path,
    asked: Mapping[str, Any],
    largest: int | Literal["auto"] | None,
    measured: bool,
) -> Choice:
    """`asked`: settings of Execution that flags name. All ranks choose alike. Raises UsageError for what cannot be done
    world.
    """
    file = out / FILE
    before = world.broadcast_object(json.loads(file.read_text()) if world.is_main and file.exists() else None) or {}
    kept = Execution.from_dict(before.get("execution", {}))
    execution = replace(kept, **asked)
    if largest == "auto":
        largest = before.get("micro_batch") or largest_batch(config, world, execution)
    micro_batch, accumulate = divide_batch(config.batch, world.size, largest)
    if measured and not before:
        execution = tune(config, world, micro_batch, accumulate)
    if execution.graph and (why := obstacle(world.device, world.size, accumulate)):
        raise UsageError(f"--graph: {why}; leave it out")
    if before and execution != kept and world.is_main:
        print(f"warning: computed as {execution}, before as {kept}: last bits will differ", file=sys.stderr)
    return Choice(execution, micro_batch, accumulate)


def keep(choice: Choice, out: Path) -> None:
    """For the next start of this run."""
    write_text(out / FILE, json.dumps({"execution": choice.execution.to_dict(), "micro_batch": choice.micro_batch}))
