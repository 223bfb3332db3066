"""What our loop costs: its step over that of a bare PyTorch loop, with the same net and the same batches, in pairs.

The bare loop does forward, backward and fused SGD, and nothing else. Ours also counts loss and errors, leaves out steps
that are not finite, keeps its place, sets the learning rate, and reads its sums at each logging interval. Both take
their batches from a loader of their own of the same kind. Turns are short, and a difference is taken between
neighbours, so that what else the machine does falls on both.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Generator
from dataclasses import asdict, replace
from typing import Any

import torch

from senet import config
from senet.bench.contestants import Setting, execution, looked_at, plain_loop
from senet.bench.net import choose
from senet.config import Config
from senet.data.loader import Batch, TrainLoader
from senet.data.source import Source, train_loader
from senet.distributed import World
from senet.execution.execution import Execution, prepare
from senet.models import build
from senet.system import table
from senet.system.timing import Spread, Step, synchronise
from senet.train import optimiser
from senet.train.meter import Meter
from senet.train.trainer import DTYPES, Trainer

GOAL = 1.0  # percent
HEADER = ("", "bare, ms", "ours, ms", "difference, us", "percent", "+-", "middle half of pairs, percent")


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", nargs="?", default="configs/cifar10/se_resnet20.yaml", metavar="CONFIG")
    parser.add_argument(
        "--execution", default="channels_last", metavar="HOW", help="of the net in both loops (default channels_last)"
    )
    parser.add_argument("--precision", choices=list(DTYPES), default="fp32")
    parser.add_argument("--batch", type=int, metavar="N", help="images a step (default: the config's)")
    parser.add_argument("--pairs", type=int, default=100, metavar="N", help="of turns (default 100)")
    parser.add_argument(
        "--turn", type=int, default=2, metavar="STEPS", help="in a row before it is the other's turn (default 2)"
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of PyTorch, on a CPU (default 1)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, print, return it as plain data."""
    device = choose(args.device)
    torch.set_num_threads(args.threads)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    loaded = config.load(args.config)
    settings = synthetic(loaded, args.batch or loaded.batch, args.precision)
    how = execution(args.execution)
    result = {"config": args.config, "execution": args.execution, "precision": args.precision, "batch": settings.batch}
    result |= {"device": device.type, "threads": args.threads, "torch": torch.__version__}
    result |= compare(settings, device, how, args.pairs, args.turn)
    print(table.text(HEADER, cells(result)))
    reached = result["cpu" if device.type == "cpu" else "wall"]["overhead_percent"] < GOAL
    print(f"goal, below {GOAL} %: {'reached' if reached else 'not reached'}")
    return result | {"reached": reached}


def synthetic(loaded: Config, batch: int, precision: Any) -> Config:
    """The same on made-up images, so that no data set is needed."""
    data = config.Synthetic(classes=loaded.data.classes, crop=loaded.data.crop)
    return replace(loaded, data=data, batch=batch, precision=precision)


def compare(settings: Config, device: torch.device, how: Execution, pairs: int, turn: int) -> dict[str, Any]:
    """Both loops in `pairs` of turns of `turn` steps, in wall time and CPU time; the difference is the median of the
    pairs'.

    `error_percent` is the standard error of that median, were the pairs drawn from a normal distribution.
    """
    wall, cpu = turns({"bare": bare(settings, device, how), "ours": ours(settings, device, how)}, device, pairs, turn)
    result: dict[str, Any] = {"pairs": pairs, "turn": turn}
    for kind, times in (("wall", wall), ("cpu", cpu)):
        extra = [own - other for own, other in zip(times["ours"], times["bare"], strict=True)]
        base, middle = Spread.of(times["bare"]).median, Spread.of(extra).median
        result[kind] = {name: asdict(Spread.of(values)) for name, values in times.items()}
        result[kind] |= {"overhead_us": 1e6 * middle, "overhead_percent": 100 * middle / base}
        low, high = (100 * value / base for value in _quarters(extra))
        result[kind] |= {"middle_half_percent": [low, high], "error_percent": 0.93 * (high - low) / pairs**0.5}
    return result


def cells(result: dict[str, Any]) -> list[list[object]]:
    """The lines of the table under HEADER."""
    lines: list[list[object]] = []
    for kind in ("wall", "cpu"):
        found = result[kind]
        low, high = found["middle_half_percent"]
        shown = [
            1000 * found["bare"]["median"],
            1000 * found["ours"]["median"],
            found["overhead_us"],
            found["overhead_percent"],
            found["error_percent"],
        ]
        lines.append([f"{kind} time", *shown, f"{low:.2f} to {high:.2f}"])
    return lines


def turns(
    loops: dict[str, Step], device: torch.device, pairs: int, turn: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds and CPU-seconds a step of each turn, by loop."""
    wall: dict[str, list[float]] = {name: [] for name in loops}
    cpu: dict[str, list[float]] = {name: [] for name in loops}
    for step in loops.values():
        for _ in range(3):
            step()
    gc.collect()
    gc.freeze()  # a collection would fall on either
    for number in range(pairs):
        for name in list(loops)[:: 1 if number % 2 else -1]:
            synchronise()
            began, used = time.perf_counter(), time.process_time()
            for _ in range(turn):
                loops[name]()
            synchronise()
            wall[name].append((time.perf_counter() - began) / turn)
            cpu[name].append((time.process_time() - used) / turn)
    gc.unfreeze()
    return wall, cpu


def _loader(settings: Config, device: torch.device, how: Execution) -> TrainLoader:
    loader = train_loader(
        settings.data, Source(), settings.batch, settings.batch, settings.seed, 0, 1, device, DTYPES[settings.precision]
    )
    loader.memory_format = how.memory_format
    return loader


def ours(settings: Config, device: torch.device, how: Execution) -> Step:
    """The real Trainer over the real loader."""
    trainer = Trainer.build(settings, World(0, 1, device), how)
    return looked_at(trainer, _loader(settings, device, how), Meter(device))


def bare(settings: Config, device: torch.device, how: Execution) -> Step:
    """A bare loop over a loader of the same kind."""
    torch.manual_seed(0)
    net = prepare(build(settings.net, settings.data.classes).to(device), how).train()
    batches: Generator[Batch, None, None] = _loader(settings, device, how).batches(0, 0)
    setting = Setting(device, settings.batch, settings.data.crop, settings.data.classes, settings.precision)

    def batch() -> Any:
        given = next(batches)
        return given.images, given.labels

    return plain_loop(net, optimiser.build(net, settings.optim), setting, batch)


def _quarters(values: list[float]) -> tuple[float, float]:
    """Between which the middle half lies."""
    ordered = sorted(values)
    return ordered[len(ordered) // 4], ordered[-1 - len(ordered) // 4]
