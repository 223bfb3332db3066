"""One rank and two, by torchrun: the same global batch must give the same gradients and parameters; what is sent is
counted.

One process takes the batch in two micro-batches, of which each of two ranks takes one: BN sees the same images either
way. Ranks on one machine without GPUs share its cores, so two of them are no faster than one, and their times say
nothing about scaling.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from senet import config
from senet.errors import RunError
from senet.system import table
from senet.system.timing import Spread

CLOSE = 1e-4  # of the greatest gradient: sums in another order


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", nargs="?", default="configs/imagenet/se_resnet50.yaml", metavar="CONFIG")
    parser.add_argument("--ranks", type=int, default=2, metavar="N", help="to compare with one (default 2)")
    parser.add_argument("--batch", type=int, default=4, metavar="N", help="images a rank (default 4)")
    parser.add_argument("--crop", type=int, default=64, metavar="PIXELS", help="side of the images (default 64)")
    parser.add_argument("--steps", type=int, default=3, metavar="N", help="before parameters are compared (default 3)")
    parser.add_argument("--timed", type=int, default=5, metavar="N", help="steps (default 5)")
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cpu", help="cuda: a GPU for each rank (default cpu)"
    )


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Run both, compare, print, return it as plain data. Raises RunError when a rank fails."""
    loaded = config.load(args.config)
    data = config.Synthetic(classes=loaded.data.classes, crop=args.crop)
    net = replace(loaded.net, dropout=0.0) if isinstance(loaded.net, config.ResNet) else loaded.net
    chosen = replace(loaded, net=net, data=data, batch=args.batch * args.ranks, precision="fp32")
    settings = {
        "config": config.to_dict(chosen),
        "device": args.device,
        "parts": args.ranks,
        "steps": args.steps,
        "timed": args.timed,
    }
    with tempfile.TemporaryDirectory() as folder:
        one = _run(settings, 1, Path(folder) / "one")
        many = _run(settings, args.ranks, Path(folder) / "many")
    result = _compare(one, many) | {
        "config": args.config,
        "batch": args.batch,
        "crop": args.crop,
        "device": args.device,
        "ranks": args.ranks,
    }
    _print(result)
    return result


def _run(settings: dict[str, Any], ranks: int, out: Path) -> list[dict[str, Any]]:
    """Each rank's facts and tensors."""
    out.mkdir()
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    command = [sys.executable, *start, "-m", "senet.bench.rank", json.dumps(settings), str(out)]
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    done = subprocess.run(command, env=os.environ | threads, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        raise RunError(f"{ranks} ranks: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return [
        json.loads((out / f"rank{rank}.json").read_text()) | torch.load(out / f"rank{rank}.pt", weights_only=True)
        for rank in range(ranks)
    ]


def _compare(one: list[dict[str, Any]], many: list[dict[str, Any]]) -> dict[str, Any]:
    single, first = one[0], many[0]

    def apart(name: str) -> float:
        return float((first[name] - single[name]).abs().max() / single[name].abs().max())

    seconds = [Spread.of(run[0]["seconds"]) for run in (one, many)]
    return {
        "gradient_difference": apart("gradients"),
        "parameter_difference": apart("parameters"),
        "ranks_equal": len({run["digest"] for run in many}) == 1,
        "collectives": first["collectives"],
        "collective_bytes": sum(size for _, size in first["collectives"]),
        "collectives_alone": len(single["collectives"]),
        "buckets": first["buckets"],
        "gradient_bytes": 4 * first["trainable"],
        "seconds_one": asdict(seconds[0]),
        "seconds_many": asdict(seconds[1]),
        "close": apart("gradients") < CLOSE,
    }


def _print(result: dict[str, Any]) -> None:
    ranks, same = result["ranks"], {True: "the same", False: "DIFFERENT"}
    kinds = sorted({kind for kind, _ in result["collectives"]})
    print(
        f"{result['config']}, {result['batch']} images of {result['crop']} px a rank, {result['device']}, "
        f"torch {torch.__version__}"
    )
    rows = [
        [f"gradients, {ranks} ranks against one process", f"{result['gradient_difference']:.1e} of the greatest"],
        ["parameters after some steps, likewise", f"{result['parameter_difference']:.1e} of the greatest"],
        ["parameters of all ranks, by hash", same[result["ranks_equal"]]],
        [
            "collectives a step",
            f"{len(result['collectives'])} ({', '.join(kinds)}); buckets of gradients: {result['buckets']}",
        ],
        ["bytes a step", f"{result['collective_bytes']:,}; gradients are {result['gradient_bytes']:,}"],
        ["collectives a step, one process", str(result["collectives_alone"])],
        ["ms a step, one process with all images", str(Spread(**_ms(result["seconds_one"])))],
        [f"ms a step, {ranks} ranks", str(Spread(**_ms(result["seconds_many"])))],
    ]
    print(table.text(("", ""), rows))
    if result["device"] == "cpu":
        print("Ranks share the cores of this machine: their times say nothing about scaling.")


def _ms(seconds: dict[str, Any]) -> dict[str, Any]:
    return {name: value if name == "n" else 1000 * value for name, value in seconds.items()}
