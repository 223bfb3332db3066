"""How a rank computes a step: the execution of its net, and how many images it takes at once.

A resumed run computes as it did before unless flags say otherwise. The last bits of a result depend on the execution;
with batch normalisation more than that depends on the micro-batch, over which it takes its statistics.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from senet.config import Config, divide_batch
from senet.distributed import World
from senet.errors import UsageError
from senet.execution.execution import Execution
from senet.system.files import write_text
from senet.train.autotune import tune
from senet.train.cuda_graph import obstacle
from senet.train.largest_batch import largest_batch, least_batch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepPlan:
    execution: Execution
    micro_batch: int  # images that a rank takes at once
    accumulation_steps: int  # micro-batches a step

    def save(self, file: Path) -> None:
        """Write the plan for the next start of this run."""
        write_text(file, json.dumps({"execution": self.execution.to_dict(), "micro_batch": self.micro_batch}))


def decide(
    config: Config,
    world: World,
    file: Path,
    asked: Mapping[str, Any],
    largest: int | Literal["auto"] | None,
    measure: bool,
) -> StepPlan:
    """Return the plan kept in `file`, changed by the settings of Execution that were `asked` for and by the `largest`
    batch that a rank may take at once; on a first start, if asked to, `measure` the fastest execution.

    All ranks call it and get the same plan. Raises UsageError for what cannot be done on this machine.
    """
    kept = world.broadcast_object(_kept(file) if world.is_main else None)
    before = Execution.from_dict(kept.get("execution", {}))
    execution = replace(before, **asked)
    if largest == "auto":
        largest = kept.get("micro_batch") or largest_batch(config, world, execution)
    micro_batch, accumulation_steps = divide_batch(config.batch, world.size, largest or kept.get("micro_batch"))
    if micro_batch == 1 and least_batch(config) > 1:
        few = "one image at once, and batch normalisation needs two if a net shrinks them to one pixel"
        remedy = "use a larger batch, fewer ranks or a larger --largest-batch"
        raise UsageError(f"batch: {config.batch} gives a rank {few}; {remedy}")
    if measure and not kept:
        execution = tune(config, world, micro_batch, accumulation_steps)
    if execution.graph and (why := obstacle(world.device, world.size, accumulation_steps, config.optim)):
        raise UsageError(f"--graph: {why}; leave it out")
    if kept and execution != before:
        log.warning("computed as %s, before as %s: last bits will differ", execution, before)
    if kept and micro_batch != kept["micro_batch"]:
        differs = "batch normalisation sees other batches, results will differ"
        log.warning("a rank takes %d images at once, before %d: %s", micro_batch, kept["micro_batch"], differs)
    return StepPlan(execution, micro_batch, accumulation_steps)


def _kept(file: Path) -> dict[str, Any]:
    """Return what `StepPlan.save` wrote, nothing if it wrote nothing. Raises UsageError for a damaged file."""
    if not file.exists():
        return {}
    try:
        found = json.loads(file.read_text())
        return {"execution": dict(found["execution"]), "micro_batch": int(found["micro_batch"])}
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{file}: damaged; restore it, or remove it: the run then computes as flags say") from None
