"""Training steps of whole nets on images that are already there: images/s, what SE costs, how near the roofline, beside
the loops of others.

All that is compared runs in this process in turns: our loop with the net, and with the same net without SE, in every
execution that is asked for; with --peers also timm's net in a loop like timm's, eager and compiled, and our net in a
loop like NVIDIA's.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch

from senet import distributed
from senet.bench.contestants import TIMM, execution, label, nvidia_style, ours, short, synthetic, timm_style
from senet.bench.rows import Fact, Row
from senet.config import Config
from senet.distributed import World
from senet.execution.execution import Execution
from senet.plan.traffic import Device, itemsize, trace
from senet.system import timing
from senet.system.timing import Effort, Step, Timing, ratios
from senet.train.trainer import DTYPES

NETS = (
    "configs/imagenet/se_resnet50.yaml:v1.5",
    "configs/imagenet/se_resnext50_32x4d.yaml",
    "configs/imagenet/se_resnext101_32x4d.yaml",
    "configs/imagenet/senet154.yaml",
    "configs/cifar10/se_resnet20.yaml",
    "configs/cifar10/se_resnet110.yaml",
)
PEERS = ("nvidia", "timm", "timm-compiled")
# Of each peer: the way a row calls it, and the column in which our rows stand beside it.
WAYS = {"nvidia": "NVIDIA's loop", "timm": "timm", "timm-compiled": "timm compiled"}
WITHOUT_SE = " without SE"


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("configs", nargs="*", default=NETS, metavar="CONFIG", help="FILE.yaml or FILE.yaml:VARIANT")
    hows = ["channels_last", "contiguous"]
    example = "contiguous, channels_last+analytic+compile, ... (analytic: the fused SE tail)"
    parser.add_argument("--executions", nargs="+", default=hows, metavar="HOW", help=example)
    parser.add_argument("--precision", choices=list(DTYPES), help="default: bf16 on a GPU, otherwise fp32")
    parser.add_argument("--batch", type=int, metavar="N", help="default: 256 on a GPU, CIFAR 1024; on a CPU 8")
    parser.add_argument("--crop", type=int, metavar="PIXELS", help="side of the images (default: the config's)")
    all_of = "default: all; on a CPU not timm-compiled, which takes long to compile"
    parser.add_argument("--peers", nargs="*", choices=PEERS, help=all_of)
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of each contestant, in turns (default 5)")
    about = "of each contestant in each round, about (default 1)"
    parser.add_argument("--seconds", type=float, default=1.0, metavar="S", help=about)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")


def run(args: argparse.Namespace) -> Iterator[Row]:
    """Measure each net in turn. Raises UsageError."""
    world = distributed.start(args.device)
    gpu = world.device.type == "cuda"
    hows = [execution(text) for text in args.executions]
    precision = args.precision or ("bf16" if gpu else "fp32")
    best = probe(world.device, precision)
    reached = f"{best.bandwidth / 1e12:.3g} TB/s, {best.matmul / 1e12:.3g} TFLOP/s ({best.source})"
    print(f"{best.name}: {reached}", file=sys.stderr)
    peers = args.peers if args.peers is not None else PEERS if gpu else PEERS[:2]
    for name in args.configs:
        batch = args.batch or (8 if not gpu else 1024 if "cifar" in name else 256)
        settings = synthetic(name, f"precision={precision}", batch=batch, crop=args.crop)
        yield from measure(name, settings, world, hows, peers, Effort(args.rounds, args.seconds), best)


def measure(
    name: str,
    settings: Config,
    world: World,
    hows: Sequence[Execution],
    peers: Sequence[str],
    effort: Effort,
    best: Device,
    plain: bool = True,
) -> Iterator[Row]:
    """Yield, after each round anew, a row for one net, the same without SE if `plain`, and each of the peers."""
    nets = {short(name): settings}
    if plain and getattr(settings.net, "se", None) is not None:
        nets[short(name) + WITHOUT_SE] = replace(settings, net=replace(settings.net, se=None))  # type: ignore[arg-type]
    makers: dict[tuple[str, str], Callable[[], Step]] = {}
    for number, how in enumerate(hows):
        makers |= {(what, label(how)): partial(ours, each, world, how) for what, each in nets.items()}
        if number == 0:  # peers come before further executions of ours, for which there may be no time
            makers |= {(short(name), WAYS[peer]): maker for peer, maker in _peers(name, settings, world, peers)}
    for timings in timing.interleave({" ".join(key): maker for key, maker in makers.items()}, effort):
        for what, way in makers:
            yield _row(what, way, timings, nets[what], best)


def _peers(name: str, settings: Config, world: World, peers: Sequence[str]) -> Iterator[tuple[str, Callable[[], Step]]]:
    theirs = TIMM.get(short(name).rpartition("/")[2])
    for peer in peers:
        if peer == "nvidia":
            yield peer, partial(nvidia_style, settings, world)
        elif theirs is not None:
            yield peer, partial(timm_style, settings, world, theirs, peer == "timm-compiled")


def _row(what: str, how: str, timings: dict[str, Timing], settings: Config, best: Device) -> Row:
    timing = timings[f"{what} {how}"]
    facts: dict[str, Fact] = {"ms a step": 1e3 * timing.median} if timing.seconds else {}
    if how not in WAYS.values():
        data = settings.data
        moved = trace(settings.net, data.classes, data.crop)
        limit = 1 / moved.seconds("analytic", best, itemsize(settings.precision))
        facts |= {"roofline": limit, "of roofline": settings.batch / timing.median / limit}
        others = {"without SE": f"{what}{WITHOUT_SE} {how}"} | {way: f"{what} {way}" for way in WAYS.values()}
        facts |= {f"x {name}": ratios(timing, timings[key]) for name, key in others.items() if key in timings}
    facts |= {"s to first step": timing.first, "GiB": timing.memory / 2**30 or None}
    facts |= {"batch": settings.batch, "precision": settings.precision}
    return Row(what, how, timing.rate(settings.batch), facts=facts, failure=timing.failure)


def probe(device: torch.device, precision: str, seconds: float = 0.5) -> Device:
    """Measure for about `seconds` each what this device reaches at best: bytes/s in a copy, FLOP/s in a matrix product.

    The fastest of many goes counts, for it is a limit that is looked for.
    """
    gpu = device.type == "cuda"
    source = torch.ones((1 << 28) if gpu else (1 << 24), device=device)
    target = torch.empty_like(source)
    side = 8192 if gpu else 1024
    a, b = torch.randn(2, side, side, device=device).to(DTYPES[precision])
    works: dict[str, Step] = {"copy": lambda: target.copy_(source), "product": lambda: torch.mm(a, b)}
    effort = Effort(steps=1, total=2 * seconds, deadline=time.monotonic() + 4 * seconds + 60)
    found = timing.measure({name: lambda work=work: work for name, work in works.items()}, effort)  # type: ignore[misc]
    copied, product = 2 * source.nbytes / min(found["copy"].seconds), 2 * side**3 / min(found["product"].seconds)
    name = torch.cuda.get_device_name(device) if gpu else f"CPU, {torch.get_num_threads()} threads"
    how = f"measured: copy of {source.nbytes >> 20} MiB, {precision} product of {side} x {side}"
    return Device(name, copied, product, how)
