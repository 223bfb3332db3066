"""What bounds a training: the loader, the net and the all-reduce alone, then all together, some seconds each."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

import torch

from senet.config import Config, Folder
from senet.data.endless import Endless, noise
from senet.data.source import Source, list_images, train_loader
from senet.distributed import World
from senet.execution.execution import Execution
from senet.plan.planner import DECODERS
from senet.run.step_plan import StepPlan
from senet.system.table import text
from senet.system.timing import synchronise, timed
from senet.track.terminal import bar, ticking
from senet.train.meter import Meter
from senet.train.trainer import DTYPES, Trainer

PARTS = ("net alone", "net under DDP", "all-reduce alone", "loader alone", "all together")
WARM = 3  # steps before any that count: memory is allocated, algorithms are chosen, connections made
FEWEST, MOST = 2, 2000  # steps that count
EXPOSED = 0.15  # share of a step from which communication is what bounds
TOGETHER = 1.25  # times the longest part, from which the parts get into each other's way
IDLE = 0.6  # share of the cores that is busy, below which a loader waits for something else

Bound = Literal["data", "net", "communication"]


@dataclass(frozen=True)
class Speed:
    """Seconds a step of the global batch, over all ranks."""

    batch: int
    data: float  # the loader, with nobody to wait for
    net: float  # forward, backward and update, on one batch again and again
    step: float  # the same under DDP
    all_reduce: float  # of gradients in one piece; 0 on one rank
    together: float
    gradients: int  # bytes
    busy: float  # share of this machine's cores, while the loader ran alone
    waited: float  # share of the time that the loop waited for data, together
    slowest: tuple[int, float]  # rank, and its loader's time relative to the mean of all
    backend: str = ""  # what made the images

    @property
    def bound(self) -> Bound:
        if self.data > self.step:
            return "data"
        return "communication" if self.step - self.net > EXPOSED * self.step else "net"


def measure(world: World, config: Config, source: Source, how: StepPlan, seconds: float = 4.0) -> Speed:
    """Measure a training for `seconds` in each part. All ranks call it. Raises UsageError and RunError."""
    dtype, layout, ranks = DTYPES[config.precision], how.execution.memory_format, (world.rank, world.size, world.device)
    list_images(config.data, source, world.all_gather_object, ["train"])
    loader = train_loader(config.data, source, config.batch, how.micro_batch, config.seed, *ranks, dtype)
    loader.memory_format = layout
    with closing(loader), ticking(bar("measuring", len(PARTS), "part", main=world.is_main)) as shown:

        def begin(part: str) -> None:
            shown.n = PARTS.index(part)
            shown.set_postfix_str(part)

        config = replace(config, optim=replace(config.optim, lr=1e-6))  # nothing is to be learnt from one batch
        batch = noise(how.micro_batch, config.data.crop, config.data.classes, world.device, dtype, layout)
        same = Endless(lambda number: [batch], how.accumulation_steps)
        begin("net alone")
        trainer = Trainer.build(config, World(0, 1, world.device), how.execution)
        step = alone = _loop(world, trainer, same, seconds)
        if world.size > 1:
            begin("net under DDP")
            trainer = Trainer.build(config, world, how.execution)
            step = _loop(world, trainer, same, seconds)
        gradients = 4 * sum(part.numel() for part in trainer.parameters)
        begin("all-reduce alone")
        reduced = _all_reduce(world, gradients, seconds / 2)
        endless = Endless(lambda number: loader.batches(number, 0), loader.accumulation_steps)
        begin("loader alone")
        data, busy = _data(world, endless, seconds)
        waited, began = loader.waited, time.monotonic()
        begin("all together")
        together = _loop(world, trainer, endless, seconds)
        waited = (loader.waited - waited) / (time.monotonic() - began)
    every = world.all_gather_object(data)
    rank = max(range(world.size), key=every.__getitem__)
    share = every[rank] * world.size / sum(every)
    slowest, backend = (rank, share), str(loader.description["backend"])
    return Speed(config.batch, max(every), alone, step, reduced, together, gradients, busy, waited, slowest, backend)


def page(found: Speed, config: Config, source: Source, how: StepPlan, world: World) -> str:
    """Return the table, what bounds, and what to change."""

    def row(name: str, taken: float, remark: str, images: bool = True) -> list[object]:
        return [name, found.batch / taken if images else None, f"{1e3 * taken:.1f}", remark]

    more = f"{1e3 * max(0.0, found.step - found.net):.1f} ms more than without"
    several = [
        row("net under DDP", found.step, more),
        row("all-reduce alone", found.all_reduce, f"{found.gradients / 1e6:.1f} MB of gradients", images=False),
    ]
    rows = [
        row("loader alone", found.data, f"cores {100 * found.busy:.0f} % busy"),
        row("net alone", found.net, "the same images again and again"),
        *(several if world.size > 1 else []),
        row("all together", found.together, f"waits for data {100 * found.waited:.0f} % of the time"),
    ]
    table = text(("", "images/s", "ms a step", ""), rows)
    times = f", {how.accumulation_steps} times a step" if how.accumulation_steps > 1 else ""
    computed = (
        f"computed as {how.execution} in {config.precision}; {world.size} x {how.micro_batch} images at once{times}"
    )
    advice = (f"- {advice}" for advice in _advice(found, config, source, how.execution, world.device))
    return "\n".join([computed, "", table, "", verdict(found), *advice])


def verdict(found: Speed) -> str:
    """Say in one line what bounds."""
    apart = max(found.data, found.step) / min(found.data, found.step)
    if found.bound == "data":
        return f"bound by data: the loader takes {apart:.1f} times as long as the net"
    if found.bound == "communication":
        exposed = 100 * (1 - found.net / found.step)
        return f"bound by communication: {exposed:.0f} % of a step that the net does not hide"
    return f"bound by the net: the loader could feed {apart:.1f} times as much"


def _advice(found: Speed, config: Config, source: Source, execution: Execution, device: torch.device) -> Iterator[str]:
    if found.bound == "data":
        yield from _for_data(found, config, source, device)
    elif found.bound == "net":
        if execution == Execution():
            yield "--tune times layouts, fused tails of blocks and compilation, and takes the fastest"
        if DTYPES[config.precision] == torch.float32:
            gain = "half the time" if device.type == "cuda" else "two thirds of the time if the CPU has AVX-512 BF16"
            yield f"precision=bf16 takes about {gain} (it is another config, with results of its own)"
        if device.type == "cuda":
            yield "more images a GPU: a larger batch, with its learning rate, or fewer GPUs"
            yield "python -m launch.plan says what this net can reach on this GPU"
        else:
            yield "a CPU is slow at this; OMP_NUM_THREADS sets the cores a rank computes on"
    else:
        yield "more images a rank, compress=bf16 (half the bytes), or a faster network (the doctor measures it)"
    if (longer := found.together / max(found.data, found.step)) > TOGETHER:
        shared = "cores" if device.type == "cpu" else "cores, or memory on the device"
        why = f"together they take {longer:.1f} times as long as the slower alone, for they share {shared}"
        yield f"{why}; fewer --workers may be faster"
    rank, share = found.slowest
    if share > 1.2:
        yield f"rank {rank}'s loader takes {share:.1f} times the mean: look at its machine's disk and cores"


def _for_data(found: Speed, config: Config, source: Source, device: torch.device) -> Iterator[str]:
    cores, data = len(os.sched_getaffinity(0)), config.data
    if not isinstance(data, Folder):
        return
    if found.busy < IDLE:
        if source.workers is not None and source.workers < cores:
            yield f"more workers: --workers {min(2 * source.workers, cores)}; cores are idle"
        faster = "read shards (launch.prepare shards), or copy the set to a local disk"
        yield f"cores wait, so storage is likely what bounds: {faster}"
    else:
        smaller = f"launch.prepare imagenet --short-side {data.resize}"
        yield f"the {cores} cores are busy decoding: more cores, or smaller images ({smaller})"
        if found.backend != "decoded":
            times = DECODERS["decoded shards"] / DECODERS["this loader"]
            prepare = f"launch.prepare shards FROM TO --decoded --short-side {max(256, data.resize)}"
            yield f"decode once for all epochs: {prepare}; a core feeds {times:.0f} times as many images from those"
        if source.backend == "pillow":
            yield "--backend dali decodes faster"
        if device.type == "cuda" and source.backend == "pillow":
            yield "DALI can decode on the GPU"
        if data.augment.policy or any(data.augment.color_jitter):
            yield "data.augment.policy and color_jitter cost time too (it is another config)"


# ------------------------------------------------------------------------------------------------------------ the parts


def _loop(world: World, trainer: Trainer, loader: Any, seconds: float) -> float:
    """Return the seconds of a step of the real loop; all ranks make as many."""
    with closing(trainer.steps(loader, 0, 0, Meter(world.device))) as steps:  # type: ignore[type-var]
        next(steps)
        count = world.broadcast_object(_count(seconds, timed(lambda: next(steps), WARM)[0]))
        world.all_gather_object(None)
        return max(world.all_gather_object(timed(lambda: next(steps), count)[0]))


def _data(world: World, loader: Endless, seconds: float) -> tuple[float, float]:
    """Return the seconds in which this rank loads its part of a step, and the share of all cores busy."""
    batches = loader.batches(0, 0)
    with closing(batches):
        for _ in islice(batches, WARM * loader.accumulation_steps):
            pass
        synchronise()
        world.all_gather_object(None)
        cpu, began, count = _ticks(), time.monotonic(), 0
        while time.monotonic() - began < seconds or count < FEWEST:
            for _ in range(loader.accumulation_steps):
                next(batches)
            count += 1
        synchronise()
        passed = time.monotonic() - began
        busy, idle = (now - before for now, before in zip(_ticks(), cpu, strict=True))
        world.all_gather_object(None)  # a rank that is done leaves the cores to the others only now
        return passed / count, busy / max(busy + idle, 1)


def _all_reduce(world: World, size: int, seconds: float) -> float:
    """Return the seconds that summing `size` bytes over all ranks takes."""
    if world.size == 1:
        return 0.0
    flat = torch.zeros(size // 4, device=world.device)
    world.all_reduce_sum(flat)
    count = world.broadcast_object(_count(seconds, timed(lambda: world.all_reduce_sum(flat))[0]))
    return timed(lambda: world.all_reduce_sum(flat), count)[0]


def _count(seconds: float, each: float) -> int:
    return min(MOST, max(FEWEST, round(seconds / max(each, 1e-6))))


def _ticks() -> tuple[int, int]:
    """Return for how long all cores have been busy, and idle or waiting for a disk, since they were started."""
    with open("/proc/stat") as file:
        user, nice, system, idle, wait, *rest = map(int, file.readline().split()[1:9])
    return user + nice + system + sum(rest), idle + wait
