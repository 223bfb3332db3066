"""What two ranks do in tests/train/test_step.py; each prints one line of JSON."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from senet import distributed
from senet.config import Config, from_dict
from senet.data.loader import Batch
from senet.execution.execution import Execution
from senet.run.voice import speaking
from senet.system.timing import Timing
from senet.train.autotune import agree, tune
from senet.train.meter import Meter
from senet.train.trainer import Trainer

NET = {
    "block": "basic",
    "blocks": [1, 1],
    "widths": [8, 256],
    "expansion": 1,
    "se": {"ratio": 16},
}  # gradients of two buckets
CONFIG = from_dict({"net": NET, "data": {"set": "synthetic", "classes": 10, "crop": 16}, "batch": 8})

SIMPLE = Execution()


def batch(rank: int) -> Batch:
    generator = torch.Generator().manual_seed(rank)
    return Batch(torch.randn(4, 3, 16, 16, generator=generator), torch.arange(4) + rank)


def gradients(net: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


def expected(config: Config, execution: Execution = SIMPLE) -> Tensor:
    """Of one process that sees the halves of both ranks, one after the other."""
    alone = Trainer.build(config, distributed.World(0, 1, torch.device("cpu")), execution)
    for rank in (0, 1):
        alone.backward(batch(rank), Meter(torch.device("cpu")), last=rank == 1)
    return gradients(alone.net)


def profiled(trainer: Trainer, world: distributed.World) -> Any:
    """The events of one step, with the question that a run asks in each."""
    meter = Meter(world.device)
    trainer.step([batch(world.rank)], meter)  # DDP settles its buckets
    with profile(activities=[ProfilerActivity.CPU]) as events:
        answer = world.all_reduce_max(0)
        trainer.step([batch(world.rank)], meter)
        answer()
    return events.events()


def named(events: Any, name: str) -> list[float]:
    """When they began."""
    return [event.time_range.start for event in events if event.name.startswith(name)]


def backward(trainer: Trainer, world: distributed.World) -> Tensor:
    trainer.backward(batch(world.rank), Meter(world.device))
    found = gradients(trainer.net)
    trainer.optimiser.zero_grad(set_to_none=True)
    return found


def off(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def collectives(world: distributed.World) -> dict[str, Any]:
    wanted = expected(CONFIG)
    told: dict[str, Any] = {}
    for compress in ("none", "bf16"):
        config = replace(CONFIG, compress=compress)  # type: ignore[arg-type]
        trainer = Trainer.build(config, world, Execution())
        error = off(backward(trainer, world), wanted)
        events = profiled(trainer, world)
        told[compress] = {
            "error": error,
            "all": len(named(events, "c10d::")),
            "reductions": len(named(events, "c10d::allreduce_")),
            "parameters": float(torch.cat([p.detach().flatten() for p in trainer.parameters]).double().square().sum()),
        }
        data = trainer.model._get_ddp_logging_data()  # type: ignore[operator]
        sizes = [int(size) for size in str(data["rebuilt_bucket_sizes"]).split(",")]
        told |= {"buckets": len(sizes), "bytes": sum(sizes), "gradient_bytes": 4 * len(wanted)}
    return told


def compiled(world: distributed.World) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for execution in (SIMPLE, Execution(tail="analytic", compile=True)):
        if world.is_main:
            expected(CONFIG, execution)
        world.broadcast_object(None)  # the other rank finds in the cache what is compiled by now
        trainer = Trainer.build(CONFIG, world, execution)
        error = off(backward(trainer, world), expected(CONFIG))
        events = profiled(trainer, world)
        reduced = named(events, "c10d::allreduce_")
        early = sorted(reduced)[1] < max(named(events, "aten::convolution_backward"))  # the first one is the question
        told[str(execution)] = {"error": error, "reductions": len(reduced), "early": early}
    return told


def tuned(world: distributed.World) -> dict[str, Any]:
    lines: list[str] = []
    with speaking(world, lines.append):
        chosen = tune(CONFIG, world, 4, seconds=0.2)
    other = Execution("contiguous")
    timings = {Execution(): Timing([1.0]), other: Timing([0.5], failure="odd" if world.rank else None)}
    agree(timings, world)
    return {
        "rank": world.rank,
        "chosen": str(chosen),
        "lines": lines,
        "reason": timings[other].failure,
        "others": timings[other].seconds,
    }


def main(what: str) -> None:
    torch.set_num_threads(1)
    world = distributed.start("cpu")
    # In one write: print writes the end of a line by itself, and another rank may come between.
    told = {"collectives": collectives, "compiled": compiled, "tune": tuned}[what](world)
    os.write(1, (json.dumps(told) + "\n").encode())
    world.close()


if __name__ == "__main__":
    main(sys.argv[1])  # in a function: a group that is still known when Python ends sometimes aborts it
