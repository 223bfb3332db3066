"""What a checkpoint costs the training: how long a save holds it up, beside a bare copy of the same tensors in the same
minute.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from senet import config
from senet.models import build
from senet.run.preflight import checkpoint_bytes
from senet.run.saver import Saver, snapshot
from senet.system.timing import synchronise
from senet.train import optimiser


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", default="configs/imagenet/se_resnet50.yaml", help="whose net is saved (default: SE-ResNet-50)"
    )
    parser.add_argument(
        "--rounds", type=int, default=15, metavar="N", help="interleaved pairs of a copy and a save (default 15)"
    )
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where to write (default: a temporary folder)")


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, print, return as plain data."""
    settings = config.load(args.config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = build(settings.net, settings.data.classes).to(device)
    payload = {"net": net.state_dict(), "optimiser": optimiser.build(net, settings.optim).state_dict()}
    copies, stalls, writes = [], [], []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        saver = Saver(Path(folder), keep=2)
        for number in range(args.rounds + 1):
            copies.append(_time(partial(snapshot, payload)))
            began = time.monotonic()
            stalls.append(_time(partial(saver.save, number, payload, {}, [])))
            saver.finish()
            writes.append(time.monotonic() - began)
        saver.close()
    copies, stalls, writes = copies[1:], stalls[1:], writes[1:]  # the first ones allocate
    ratios = [stall / copy for stall, copy in zip(stalls, copies, strict=True)]
    size = checkpoint_bytes(net)
    print(f"{args.config}: {size / 1e6:.0f} MB on the {device}, {args.rounds} rounds, median (range)")
    for name, values in (
        ("a bare copy", copies),
        ("a save holds training up", stalls),
        ("until it is on disk", writes),
    ):
        print(
            f"  {name:26}{1000 * statistics.median(values):8.1f} ms ({1000 * min(values):.1f}-{1000 * max(values):.1f})"
        )
    print(
        f"  {'stall over copy, by pairs':26}{statistics.median(ratios):8.2f}    ({min(ratios):.2f}-{max(ratios):.2f})"
    )
    return {
        "megabytes": size / 1e6,
        "device": str(device),
        "copies": copies,
        "stalls": stalls,
        "writes": writes,
        "ratio": statistics.median(ratios),
    }


def _time(act: Callable[[], object]) -> float:
    synchronise()
    began = time.perf_counter()
    act()
    synchronise()
    return time.perf_counter() - began
