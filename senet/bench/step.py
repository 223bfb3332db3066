"""What our loop costs: its step over that of a bare PyTorch loop, with the same net and the same batches, in pairs.

The bare loop does forward, backward and fused SGD, and nothing else. Ours also counts loss and errors, leaves out steps
that are not finite, keeps its place, sets the learning rate, and reads its sums at each logging interval. Both take
their batches from a loader of their own of the same kind. Turns are short, and a difference is taken between
neighbours, so that what else the machine does falls on both.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from functools import partial

import torch

from senet import distributed
from senet.bench.contestants import bare, execution, label, ours, short, synthetic
from senet.bench.rows import Row
from senet.config import Config
from senet.data.endless import Endless
from senet.data.source import Source, train_loader
from senet.distributed import World
from senet.execution.execution import Execution
from senet.system.timing import Effort, Spread, Step, interleave
from senet.train.trainer import DTYPES

GOAL = 1.0  # percent


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", nargs="?", default="configs/cifar10/se_resnet20.yaml", metavar="CONFIG")
    of_both = "of the net in both loops (default channels_last)"
    parser.add_argument("--execution", default="channels_last", metavar="HOW", help=of_both)
    parser.add_argument("--precision", choices=list(DTYPES), default="fp32")
    parser.add_argument("--batch", type=int, metavar="N", help="images a step (default: the config's)")
    parser.add_argument("--pairs", type=int, default=100, metavar="N", help="of turns (default 100)")
    in_a_row = "in a row before it is the other's turn (default 2)"
    parser.add_argument("--turn", type=int, default=2, metavar="STEPS", help=in_a_row)
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of PyTorch, on a CPU (default 1)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")


def run(args: argparse.Namespace) -> Iterator[Row]:
    """Measure one net. Raises UsageError."""
    world, how = distributed.start(args.device), execution(args.execution)
    torch.set_num_threads(args.threads)
    settings = synthetic(args.config, f"precision={args.precision}", batch=args.batch)
    yield from compare(short(args.config), settings, world, how, Effort(args.pairs, steps=args.turn))


def compare(what: str, settings: Config, world: World, how: Execution, effort: Effort) -> Iterator[Row]:
    """Yield, after each pair of turns, what ours takes over a bare loop, in wall time and in CPU time of the process.

    The difference is the median of the pairs'; `standard error` is that of the median, if the pairs were drawn from a
    normal distribution.
    """

    def loader() -> object:
        found = train_loader(
            settings.data, Source(), settings.batch, settings.batch, 0, 0, 1, world.device, DTYPES[settings.precision]
        )
        found.memory_format = how.memory_format
        return Endless(lambda number: found.batches(number, 0))  # a small set has few steps an epoch

    makers: dict[str, Callable[[], Step]] = {
        "bare": lambda: bare(settings, world, how, loader()),
        "ours": lambda: ours(settings, world, how, loader()),
    }
    for timings in interleave(makers, effort):
        failure = timings["bare"].failure or timings["ours"].failure
        for clock, times in (("wall", "seconds"), ("CPU", "cpu")):
            row = partial(Row, what, f"{label(how)}, {clock} time", unit="% over a bare loop")
            pairs = list(zip(getattr(timings["bare"], times), getattr(timings["ours"], times), strict=False))
            if failure or not pairs:
                yield row(failure=failure or "no time was left")
                continue
            base = Spread.of([other for other, _ in pairs]).median
            extra = sorted(100 * (own - other) / base for other, own in pairs)
            low, high = extra[len(extra) // 4], extra[-1 - len(extra) // 4]
            middle = Spread.of(extra).median
            facts = {"standard error": 0.93 * (high - low) / math.sqrt(len(pairs)), "us": 1e4 * base * middle}
            facts |= {"bare, ms": 1e3 * base, "pairs": len(pairs), "batch": settings.batch}
            reached = "reached" if middle < GOAL else "not reached"
            yield row(Spread(middle, low, high, len(pairs)), facts=facts | {f"goal, below {GOAL:g} %": reached})
