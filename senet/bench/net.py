"""Training steps of whole nets on images that are already there: images/s, what SE costs, how near the roofline,
against others' loops.

All that is compared runs in this process in turns: our loop with the net and with the same net without SE, each in
every way of computing it that is asked for; with --peers also timm's model in a loop like timm's, eager and compiled,
and our net in a loop like NVIDIA's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from senet import config
from senet.bench.contestants import TIMM, Setting, execution, label, nvidia_style, ours, timm_style
from senet.bench.probe import probe
from senet.errors import UsageError
from senet.execution.execution import Execution
from senet.plan.traffic import Device, Stack, Traffic, itemsize, trace
from senet.system import table, timing
from senet.system.timing import Effort, Spread, Step, Timing, ratios
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
HEADER = (
    "net",
    "computed",
    "images/s (range)",
    "ms a step",
    "of analytic roofline",
    "x plain net",
    "x timm",
    "x timm compiled",
    "x NVIDIA's loop",
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "configs",
        nargs="*",
        default=list(NETS),
        metavar="CONFIG",
        help="FILE.yaml or FILE.yaml:VARIANT, with SE or without",
    )
    parser.add_argument(
        "--executions",
        nargs="+",
        default=["channels_last", "contiguous"],
        metavar="HOW",
        help="channels_last, contiguous, channels_last+analytic+compile, ...",
    )
    parser.add_argument("--precision", choices=list(DTYPES), help="default: bf16 on a GPU, else fp32")
    parser.add_argument(
        "--batch", type=int, metavar="N", help="images a step (default: 256 on a GPU, 1024 for CIFAR; 8 on a CPU)"
    )
    parser.add_argument("--crop", type=int, metavar="PIXELS", help="side of the images (default: the config's)")
    parser.add_argument(
        "--peers",
        nargs="*",
        choices=PEERS,
        help="to compare with (default: all; on a CPU not timm-compiled, slow to compile)",
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of each contestant, in turns (default 5)")
    parser.add_argument(
        "--seconds", type=float, default=1.0, metavar="S", help="about, of each contestant in each round (default 1)"
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--png", type=Path, metavar="FILE", help="also draw the images/s")


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Measure each net, print a table, return it as plain data."""
    device = choose(args.device)
    hows = [execution(text) for text in args.executions]
    precision = args.precision or ("bf16" if device.type == "cuda" else "fp32")
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    best = probe(device, DTYPES[precision])
    print(f"{best.name}: {best.bandwidth / 1e12:.3g} TB/s, {best.matmul / 1e12:.3g} TFLOP/s ({best.source})")
    effort = Effort(args.rounds, args.seconds)
    peers = args.peers if args.peers is not None else PEERS if device.type == "cuda" else PEERS[:2]
    rows: list[dict[str, Any]] = []
    for name in args.configs:
        loaded = config.load(name)
        crop = args.crop or loaded.data.crop
        batch = args.batch or (8 if device.type == "cpu" else 1024 if crop <= 32 else 256)
        setting = Setting(device, batch, crop, loaded.data.classes, precision)
        rows += measure(name, loaded.net, setting, hows, peers, effort, best)
    print(table.text(HEADER, cells(rows)))
    for row in rows:
        if row["failure"]:
            print(f"{row['net']} {row['how']}: not measured: {row['failure']}")
    if args.png:
        draw(rows, best, args.png)
    return {"device": asdict(best), "versions": {"torch": torch.__version__}, "rows": rows, "rounds": args.rounds}


def choose(name: str) -> torch.device:
    """auto, cpu or cuda as a device. Raises UsageError."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "--device cuda: no CUDA device is visible; check nvidia-smi and CUDA_VISIBLE_DEVICES, or use --device cpu"
        )
    return torch.device("cpu" if name == "cpu" or not torch.cuda.is_available() else "cuda")


def short(name: str) -> str:
    """`se_resnet50:v1.5` of configs/imagenet/se_resnet50.yaml:v1.5."""
    return Path(name.replace(".yaml", "")).name


def measure(
    name: str,
    net: config.Net,
    setting: Setting,
    hows: Sequence[Execution],
    peers: Sequence[str],
    effort: Effort,
    best: Device,
) -> list[dict[str, Any]]:
    """A row for each contestant around one net: itself, its plain counterpart, and the peers."""
    plain = replace(net, se=None) if isinstance(net, config.ResNet) else net
    makers: dict[tuple[str, str], Callable[[], Step]] = {}
    for chosen in hows:
        makers["net", label(chosen)] = partial(ours, net, setting, chosen)
        if plain != net:
            makers["plain", label(chosen)] = partial(ours, plain, setting, chosen)
    if "nvidia" in peers:
        makers["nvidia", "NVIDIA's loop"] = partial(nvidia_style, net, setting)
    if (theirs := TIMM.get(short(name))) is not None:
        for peer, how in (("timm", "timm"), ("timm-compiled", "timm, compiled")):
            if peer in peers:
                makers["timm", how] = partial(timm_style, theirs, setting, compiled=peer == "timm-compiled")
    keys = {f"{kind} {how}": (kind, how) for kind, how in makers}
    found = timing.measure({text: makers[key] for text, key in keys.items()}, effort)
    timings = {keys[text]: taken for text, taken in found.items()}
    counts = {"net": trace(net, setting.classes, setting.crop), "plain": trace(plain, setting.classes, setting.crop)}
    return [_row(name, kind, how, timings, counts, setting, best) for kind, how in timings]


def _row(
    name: str,
    kind: str,
    how: str,
    timings: dict[tuple[str, str], Timing],
    counts: dict[str, Traffic],
    setting: Setting,
    best: Device,
) -> dict[str, Any]:
    taken = timings[kind, how]
    row: dict[str, Any] = {"net": short(name), "config": name, "kind": kind, "how": how, "failure": taken.failure}
    row |= {"batch": setting.batch, "crop": setting.crop, "precision": setting.precision, "device": setting.device.type}
    row |= {"first_seconds": taken.first, "memory": taken.memory}
    if taken.failure or not taken.seconds:
        return row
    speed = taken.rate(setting.batch)
    assert speed is not None
    row |= {
        "images_per_second": asdict(speed),
        "ms": 1000 * setting.batch / speed.median,
        "seconds": taken.seconds,
        "cpu": taken.cpu,
    }
    if kind in ("net", "plain"):
        stacks: tuple[Stack, ...] = ("eager", "analytic")
        for stack in stacks:
            limit = counts[kind].images_per_second(stack, best, itemsize(setting.precision))
            row[f"limit_{stack}"], row[f"of_{stack}"] = limit, speed.median / limit
    if kind == "net":
        others = {"plain": ("plain", how), "timm": ("timm", "timm"), "timm_compiled": ("timm", "timm, compiled")}
        for other, key in (others | {"nvidia": ("nvidia", "NVIDIA's loop")}).items():
            ratio = ratios(taken, timings[key]) if key in timings else None
            row[f"x_{other}"] = asdict(ratio) if ratio else None
    return row


def cells(rows: Sequence[dict[str, Any]]) -> list[list[object]]:
    """The lines of the table under HEADER."""
    lines = []
    for row in rows:
        who = {"plain": f"{row['net']} without SE", "timm": f"timm's {TIMM.get(row['net'], '')}"}.get(
            row["kind"], row["net"]
        )
        if row["failure"]:
            lines.append([who, row["how"], "not measured", None, None, None, None, None, None])
            continue
        ratios = [
            str(Spread(**row[key])) if row.get(key) else None
            for key in ("x_plain", "x_timm", "x_timm_compiled", "x_nvidia")
        ]
        lines.append(
            [who, row["how"], str(Spread(**row["images_per_second"])), row["ms"], row.get("of_analytic"), *ratios]
        )
    return lines


def draw(rows: Sequence[dict[str, Any]], best: Device, file: Path) -> None:
    """Draw bars of images/s; the mark on a bar is the analytic roofline. Raises UsageError."""
    from senet import plots

    drawn = []
    for row in sorted(rows, key=lambda row: row["net"]):  # of one net in the order of the table
        kind = {"net": "ours", "plain": "ours, without SE", "timm": "timm", "nvidia": "NVIDIA's loop"}[row["kind"]]
        speed = row.get("images_per_second")
        where = row["how"] if row["kind"] in ("net", "plain") else ("compiled" if "compiled" in row["how"] else "eager")
        values = {"value": speed["median"], "low": speed["low"], "high": speed["high"]} if speed else {"value": None}
        drawn.append(plots.Bar(f"{row['net']} {where}", group=kind, limit=row.get("limit_analytic"), **values))
    first = rows[0]
    note = (
        f"{best.name}, {first['precision']}, batch {first['batch']}, {first['crop']} px, torch "
        f"{torch.__version__}; mark: analytic roofline"
    )
    with plots.page(file, "Training images per second, synthetic data", note=note) as (axes,):
        plots.bars(axes, drawn, "images/s")
