"""Which execution of a net is fastest here, by measurement: nothing about layouts, kernels or compilers is assumed.

Channels-last gains a third on most nets and loses a third on SENet-154, compilation pays on one machine and not on
another. So each choice makes real steps (forward, backward, update) on synthetic images for some seconds, taking turns,
and the winner is remembered.
"""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from senet.config import Config, to_dict
from senet.data.loader import Batch
from senet.distributed import World
from senet.errors import RunError, UsageError
from senet.execution.execution import Execution, choices, prepare
from senet.models import build
from senet.system.timing import synchronise
from senet.train.cuda_graph import obstacle
from senet.train.meter import Meter
from senet.train.optimiser import sgd
from senet.train.trainer import DTYPES, Trainer

WARM_UP = 3  # steps of each choice before it is timed: kernels are chosen, code is compiled
SLICE = 0.25  # seconds of steps between two readings of the clock
FAR = 1.5  # times the fastest: not worth a second round
NEAR = 1.02  # times the fastest: not a difference; then the plainest wins
SPARE = 0.93  # of the GPU's memory that a batch may take


@dataclass
class Candidate:
    """A choice and what became of it."""

    execution: Execution
    step: Callable[[], None] | None = None
    times: list[float] = field(default_factory=list)  # seconds a step, one for each round
    started: float = 0.0  # seconds until the first step was made: compilation
    guess: float = 1.0  # seconds a step, to know how many fill a slice
    reason: str = ""  # why it is out

    @property
    def seconds(self) -> float:
        return statistics.median(self.times) if self.times else float("inf")


def tune(
    config: Config,
    world: World,
    micro_batch: int,
    accumulation_steps: int = 1,
    seconds: float = 20.0,
    say: Callable[[str], None] | None = None,
) -> Execution:
    """The fastest execution of the config's net at `micro_batch` images, from the cache or measured in about `seconds`
    and compilations.

    All ranks call it and get the same one; each measures for itself, without DDP, and the slowest rank counts. A choice
    that fails on any rank is out, with its reason in the table that `say` is given (by default to stderr, on the first
    rank). Nets are made for this alone, and random generators are left as they were. Raises RunError where not one
    choice works.
    """
    say = say or (lambda text: print(text, file=sys.stderr) if world.is_main else None)
    with torch.device("meta"):
        net = build(config.net, config.data.classes)
    graphs = obstacle(world.device, world.size, accumulation_steps) is None
    offered = [choice for choice in choices(net, world.device) if graphs or not choice.graph]
    facts = key(config, world, micro_batch, offered)
    file = cache_folder() / f"execution-{_digest(facts)}.json"
    found: Execution | None = world.broadcast_object(_remembered(file) if world.is_main else None)
    if found is not None:
        say(f"execution: {found}, measured earlier ({file})")
        return found
    say(
        f"timing {len(offered)} executions of {micro_batch} images at once for {seconds:.0f} s, besides "
        "what compilation takes"
    )
    candidates = measure(config, world, micro_batch, offered, seconds)
    agree(candidates, world)
    chosen = choose(candidates)
    for line in table(candidates, chosen, micro_batch):
        say(line)
    if world.is_main:
        _remember(
            file,
            {
                **facts,
                "execution": chosen.to_dict(),
                "seconds": {str(c.execution): c.seconds for c in candidates if c.times},
            },
        )
    return chosen


# ------------------------------------------------------------------------------------------------------------ measuring


def measure(
    config: Config, world: World, micro_batch: int, offered: Sequence[Execution], seconds: float
) -> list[Candidate]:
    """Each choice timed in turn, again and again. A choice far behind after the first round is not timed again."""
    candidates = [Candidate(execution) for execution in offered]
    with torch.random.fork_rng([world.device] if world.device.type == "cuda" else []):
        # All are made before the first is compiled: making one empties the compiler's tables.
        for act in (partial(_make, config, World(0, 1, world.device), micro_batch), _start):
            for candidate in candidates:
                if not candidate.reason:
                    _try(candidate, act)
        began = time.monotonic()
        while time.monotonic() - began < seconds or any(c.step and len(c.times) < 2 for c in candidates):
            running = [candidate for candidate in candidates if candidate.step]
            for candidate in running:
                _try(candidate, _time)
            best = min((candidate.seconds for candidate in running), default=0.0)
            for candidate in running:
                if candidate.seconds > FAR * best:
                    candidate.step = None
            if sum(candidate.step is not None for candidate in candidates) < 2:
                break
        for candidate in candidates:
            candidate.step = None
    torch.compiler.reset()
    _forget()
    return candidates


def _make(config: Config, alone: World, micro_batch: int, candidate: Candidate) -> None:
    candidate.step = stepper(config, alone, micro_batch, candidate.execution)


def _start(candidate: Candidate) -> None:
    assert candidate.step is not None
    synchronise()
    for number in range(WARM_UP):
        began = time.perf_counter()
        candidate.step()
        synchronise()
        candidate.guess = time.perf_counter() - began
        if number == 0:
            candidate.started = candidate.guess


def stepper(config: Config, alone: World, micro_batch: int, execution: Execution) -> Callable[[], None]:
    """A function that makes one training step of a fresh net on synthetic images, in the way of the loop."""
    net = prepare(build(config.net, config.data.classes).to(alone.device), execution)
    net.train()
    trainer = Trainer(config, alone, net, sgd(net, config.optim), lambda *_: None, graph=execution.graph)
    meter = Meter(alone.device)
    side = config.data.crop
    images = torch.randn(micro_batch, side, side, 3, device=alone.device, dtype=DTYPES[config.precision]).permute(
        0, 3, 1, 2
    )
    batch = Batch(images, torch.arange(micro_batch, device=alone.device) % config.data.classes)
    act = trainer.step if trainer.replay is None else trainer.replay

    def step() -> None:
        act(batch, meter)

    return step


def _time(candidate: Candidate) -> None:
    """Seconds a step, over as many as fill a slice of time."""
    assert candidate.step is not None
    steps = max(1, min(1000, round(SLICE / candidate.guess)))
    synchronise()
    began = time.perf_counter()
    for _ in range(steps):
        candidate.step()
    synchronise()
    candidate.times.append((time.perf_counter() - began) / steps)


def _try(candidate: Candidate, act: Callable[[Candidate], None]) -> None:
    """A choice that fails is out, whatever it was: out of memory, a compiler, a kernel that does not fit this GPU."""
    try:
        act(candidate)
    except Exception as error:
        memory = isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error)
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        candidate.reason = "out of memory" if memory else f"{type(error).__name__}: {said[:120]}"
        candidate.step, candidate.times = None, []
        error.__traceback__ = None  # it holds the tensors of the frames it went through
    if candidate.reason:
        _forget()


def _forget() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


# ------------------------------------------------------------------------------------------------------------- choosing


def agree(candidates: list[Candidate], world: World) -> None:
    """Put in place of each choice's times those of the rank that is slowest with it; out on one rank is out on all."""
    heard = world.all_gather_object([(candidate.times, candidate.reason) for candidate in candidates])
    for place, candidate in enumerate(candidates):
        ranks = [told[place] for told in heard]
        reasons = [
            f"rank {rank}: {reason}" if world.size > 1 else reason for rank, (_, reason) in enumerate(ranks) if reason
        ]
        candidate.reason = reasons[0] if reasons else ""
        candidate.times = [] if reasons else max((times for times, _ in ranks), key=statistics.median)


def choose(candidates: Sequence[Candidate]) -> Execution:
    """The first of those that are as fast as the fastest: they come in the order of what is plain. Raises RunError
    where none works.
    """
    best = min(candidate.seconds for candidate in candidates)
    if best == float("inf"):
        raise RunError(
            f"not one execution of this net works here: {candidates[0].reason}; lower --largest-batch or batch"
        )
    return next(candidate.execution for candidate in candidates if candidate.seconds <= NEAR * best)


def table(candidates: Sequence[Candidate], chosen: Execution, micro_batch: int) -> list[str]:
    """What was measured, the fastest first."""
    plain = candidates[0].seconds
    lines = [f"{'execution':28}{'ms a step':>11}{'images/s':>11}{'x default':>11}{'rounds':>8}{'start s':>9}"]
    for candidate in sorted(candidates, key=lambda candidate: candidate.seconds):
        if candidate.reason:
            lines.append(f"{candidate.execution!s:28}  out: {candidate.reason}")
            continue
        speed = f"{plain / candidate.seconds:>11.2f}" if candidates[0].times else f"{'-':>11}"
        mark = "  <- chosen" if candidate.execution == chosen else ""
        lines.append(
            f"{candidate.execution!s:28}{1e3 * candidate.seconds:>11.2f}{micro_batch / candidate.seconds:>11.1f}{speed}"
            f"{len(candidate.times):>8}{candidate.started:>9.1f}{mark}"
        )
    return lines


# ---------------------------------------------------------------------------------------------------------- remembering


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "senet"


def key(config: Config, world: World, micro_batch: int, offered: Sequence[Execution]) -> dict[str, Any]:
    """What a measurement holds for."""
    gpu = world.device.type == "cuda"
    return {
        "net": to_dict(dataclasses.replace(Config(), net=config.net))["net"],
        "classes": config.data.classes,
        "crop": config.data.crop,
        "precision": config.precision,
        "micro_batch": micro_batch,
        "several_ranks": world.size > 1,
        "device": torch.cuda.get_device_name(world.device)
        if gpu
        else f"{_processor()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "cudnn": [torch.backends.cudnn.version(), torch.backends.cudnn.deterministic] if gpu else None,
        "choices": [str(execution) for execution in offered],
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _remembered(file: Path) -> Execution | None:
    """What an earlier measurement chose; None where there is none, or one that cannot be read."""
    try:
        return Execution.from_dict(json.loads(file.read_text())["execution"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UsageError):
        return None


def _remember(file: Path, result: dict[str, Any]) -> None:
    """A cache that cannot be written costs the next run its measurement, and no more."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(result, indent=1))
        temporary.replace(file)
    except OSError as error:
        print(f"warning: {file}: not written: {error.strerror}", file=sys.stderr)


# -------------------------------------------------------------------------------------------------------- largest batch


def largest_batch(config: Config, world: World, execution: Execution) -> int:
    """The most images of the config's batch that a rank can hold at once: what to give as --largest-batch; the same on
    all ranks.

    Raises UsageError on a CPU, whose memory swaps before it ends, and where not even one image fits.
    """
    if world.device.type != "cuda":
        raise UsageError("--largest-batch auto: needs a GPU, whose memory ends where it ends; give a number")
    share = config.batch // world.size
    alone = World(0, 1, world.device)

    def fits(size: int) -> bool:
        try:
            _probe(config, alone, size, execution)
        except torch.OutOfMemoryError:
            return False
        finally:
            _forget()
        return True

    torch.cuda.set_per_process_memory_fraction(SPARE, world.device)
    try:
        with torch.random.fork_rng([world.device]):
            own = search([size for size in range(1, share + 1) if share % size == 0], fits)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, world.device)
    least = min(world.all_gather_object(own))
    if not least:
        raise UsageError(
            "--largest-batch auto: not even one image fits the GPU's memory; use a smaller net or data.crop"
        )
    return int(least)


def _probe(config: Config, alone: World, size: int, execution: Execution) -> None:
    step = stepper(config, alone, size, execution)
    for _ in range(2):  # the second has the gradients' and libraries' memory of the first beside its own
        step()
    synchronise()


def search(sizes: Sequence[int], fits: Callable[[int], bool]) -> int:
    """The largest of rising `sizes` that fits, 0 where none does: doubling until one does not, then halving what is
    between.
    """
    good, bad = 0, len(sizes)  # sizes[:good] fit, sizes[bad:] do not
    goal = 1
    while good < bad:
        place = max(good, min(bisect.bisect_right(sizes, goal) - 1, bad - 1))
        if not fits(sizes[place]):
            bad = place
            break
        good, goal = place + 1, 2 * sizes[place]
    while good < bad:
        place = (good + bad) // 2
        if fits(sizes[place]):
            good = place + 1
        else:
            bad = place
    return sizes[good - 1] if good else 0
