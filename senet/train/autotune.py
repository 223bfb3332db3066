"""Which execution of a net is fastest here, by measurement: nothing about layouts, kernels or compilers is assumed.

Channels-last gains a third on most nets and loses a third on SENet-154, compilation pays on one machine and not on
another. So each choice makes real steps (forward, backward, update) on synthetic images for some seconds, taking turns,
and the winner is remembered.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
import os
import platform
import re
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from senet.config import Config, to_dict
from senet.data.endless import noise
from senet.distributed import World
from senet.errors import RunError, UsageError
from senet.execution.execution import Execution, choices
from senet.models import build
from senet.system.files import replace
from senet.system.table import text
from senet.system.timing import Effort, Timing, free, interleave
from senet.track.terminal import bar, ticking
from senet.train.cuda_graph import obstacle
from senet.train.meter import Meter
from senet.train.trainer import DTYPES, Trainer

WARM_UP = 2  # steps of each choice after its first and before it is timed
SLICE = 0.25  # seconds of steps between two readings of the clock
FAR = 1.5  # times the fastest: not worth a second round
NEAR = 1.02  # times the fastest: not a difference; then the plainest wins

log = logging.getLogger(__name__)

Timings = dict[Execution, Timing]  # of each choice, in the order of what is plain


def tune(
    config: Config, world: World, micro_batch: int, accumulation_steps: int = 1, seconds: float = 20.0
) -> Execution:
    """Return the fastest execution of the config's net at `micro_batch` images: remembered, or measured for about
    `seconds` besides compilation.

    All ranks call it and get the same one; each measures for itself, without DDP, and the slowest rank counts. A choice
    that fails on any rank is out, with its reason in the table that the first rank logs. Nets are made for this alone,
    and random generators are left as they were. Raises RunError if not one choice works.
    """
    say = log.info if world.is_main else log.debug
    with torch.device("meta"):
        net = build(config.net, config.data.classes)
    offered = choices(net, world.device)
    if obstacle(world.device, world.size, accumulation_steps, config.optim):
        offered = [choice for choice in offered if not choice.graph]
    if config.bn.sync and world.size > 1:
        offered = [choice for choice in offered if choice.tail == "plain"]
    facts = key(config, world, micro_batch, offered)
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "senet"
    file = cache / f"execution-{digest}.json"
    remembered: Execution | None = world.broadcast_object(_remembered(file) if world.is_main else None)
    if remembered is not None:
        say(f"execution: {remembered}, measured earlier ({file})")
        return remembered
    timed = f"timing {len(offered)} executions of {micro_batch} images at once for {seconds:.0f} s"
    say(f"{timed}, besides what compilation takes")
    timings = measure(config, world, micro_batch, offered, seconds)
    agree(timings, world)
    chosen = fastest(timings)
    for line in table(timings, chosen, micro_batch).splitlines():
        say(line)
    if world.is_main:
        medians = {str(execution): timing.median for execution, timing in timings.items() if timing.seconds}
        result = {**facts, "execution": chosen.to_dict(), "seconds": medians}
        try:
            cache.mkdir(parents=True, exist_ok=True)
            replace(file, lambda temporary: temporary.write_text(json.dumps(result, indent=1)), shared=True)
        except OSError as error:  # it costs later runs time, and no more
            log.warning("%s: not written: %s", file, error.strerror)
    return chosen


# ------------------------------------------------------------------------------------------------------------ measuring


def measure(config: Config, world: World, micro_batch: int, offered: Sequence[Execution], seconds: float) -> Timings:
    """Time each choice in turns for about `seconds`. A choice far behind after the first round is not timed again, and
    one that fails is out, whatever it was: out of memory, a compiler, a kernel that does not fit this GPU.
    """
    effort = Effort(rounds=2, seconds=SLICE, warmup=WARM_UP, total=seconds, behind=FAR)
    makers = {
        str(execution): partial(stepper, config, World(0, 1, world.device), micro_batch, execution)
        for execution in offered
    }
    with (
        torch.random.fork_rng([world.device] if world.device.type == "cuda" else []),
        ticking(bar("tuning", (2 + effort.rounds) * len(makers), "turn", main=world.is_main)) as shown,
    ):
        turns = itertools.count()

        def note(turn: str) -> None:
            shown.n = next(turns)
            shown.total = max(shown.total or 0, shown.n + 1)
            shown.set_postfix_str(turn)

        *_, timings = interleave(makers, effort, note)
    torch.compiler.reset()
    free()
    return {execution: timings[str(execution)] for execution in offered}


def stepper(config: Config, alone: World, micro_batch: int, execution: Execution) -> Callable[[], None]:
    """Return a function that makes one step of a fresh net on `micro_batch` made-up images, as the loop does."""
    trainer, data = Trainer.build(config, alone, execution), config.data
    trainer.net.train()
    dtype, layout = DTYPES[config.precision], execution.memory_format
    batch = noise(micro_batch, data.crop, data.classes, alone.device, dtype, layout)
    launch, meter = trainer.graphed or trainer.step, Meter(alone.device)

    def step() -> None:
        launch([batch], meter)

    return step


# ------------------------------------------------------------------------------------------------------------- choosing


def agree(timings: Timings, world: World) -> None:
    """Replace each choice's seconds by the slowest rank's, and failures by that of any. All ranks call it."""
    ranks = world.all_gather_object([(timing.seconds, timing.failure) for timing in timings.values()])
    for timing, of_choice in zip(timings.values(), zip(*ranks, strict=True), strict=True):
        failed = next((rank for rank, (_, failure) in enumerate(of_choice) if failure), None)
        if failed is None:
            timing.seconds = max((seconds for seconds, _ in of_choice), key=statistics.median)
        else:
            named = f"rank {failed}: " if world.size > 1 else ""
            timing.seconds, timing.failure = [], f"{named}{of_choice[failed][1]}"


def fastest(timings: Timings) -> Execution:
    """Return the plainest of those that are as fast as the fastest. Raises RunError if none works."""
    best = min(timing.median for timing in timings.values())
    if best == float("inf"):
        failure = next(iter(timings.values())).failure
        raise RunError(f"not one execution of this net works here: {failure}; lower --largest-batch or batch")
    return next(execution for execution, timing in timings.items() if timing.median <= NEAR * best)


def table(timings: Timings, chosen: Execution, micro_batch: int) -> str:
    """Show what was measured, the fastest first."""
    plain = next(iter(timings.values())).median
    rows: list[list[object]] = []
    for execution, timing in sorted(timings.items(), key=lambda item: item[1].median):
        if timing.failure:
            rows.append([execution, None, None, None, None, None, f"out: {timing.failure}"])
            continue
        faster = plain / timing.median if plain < float("inf") else None
        pace, mark = micro_batch / timing.median, "<- chosen" if execution == chosen else ""
        rows.append([execution, 1e3 * timing.median, pace, faster, len(timing.seconds), timing.first, mark])
    return text(("execution", "ms a step", "images/s", "x default", "rounds", "start s", ""), rows)


# ---------------------------------------------------------------------------------------------------------- remembering


def key(config: Config, world: World, micro_batch: int, offered: Sequence[Execution]) -> dict[str, Any]:
    """Return all that a measurement depends on."""
    gpu = world.device.type == "cuda"
    return {
        "net": to_dict(dataclasses.replace(Config(), net=config.net))["net"],
        "classes": config.data.classes,
        "crop": config.data.crop,
        "precision": config.precision,
        "micro_batch": micro_batch,
        "several_ranks": world.size > 1,
        "device": torch.cuda.get_device_name(world.device) if gpu else _processor(),
        "torch": torch.__version__,
        "cudnn": [torch.backends.cudnn.version(), torch.backends.cudnn.deterministic] if gpu else None,
        "choices": [str(execution) for execution in offered],
    }


def _processor() -> str:
    named = re.search(r"^model name\s*: (.+)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return f"{named[1] if named else platform.machine()}, {torch.get_num_threads()} threads"


def _remembered(file: Path) -> Execution | None:
    """Return what an earlier measurement chose; None if there is none, or one that cannot be read."""
    try:
        return Execution.from_dict(json.loads(file.read_text())["execution"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UsageError):
        return None
