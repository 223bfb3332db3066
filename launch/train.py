"""Train a network.

    python -m launch.train configs/imagenet/se_resnet50.yaml --data DIR --gpus 8
    torchrun --nnodes=2 --nproc-per-node=8 ... -m launch.train configs/imagenet/se_resnet50.yaml --data DIR --out SHARED

The same command goes on from the newest checkpoint in --out. Exit codes: 0 done, 2 usage or config, 75 stopped early, 1
else.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from launch import early, guard, ranks
from launch.flags import Parser, add_config, add_data_flags, parse_config, run_name, source
from senet import config
from senet.run import flags, status
from senet.run.stop import RESUMABLE, Stop
from senet.system.run_folder import RunFolder


def parse(words: list[str] | None) -> argparse.Namespace:
    """Return the command line, its flags checked; `launch.submit` checks with it what it passes on."""
    parser = Parser("launch.train", __doc__)
    add_config(parser)
    add = parser.add_argument
    add("--out", type=Path, metavar="DIR", help="run folder (default: runs/CONFIG)")
    ranks.add_flags(parser)
    add_data_flags(parser, again=True)
    flags.add(parser)
    args = parse_config(parser, words)
    flags.check(parser, args)
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    settings = config.load(args.config, args.overrides)
    name = run_name(args.config)
    folder = RunFolder(args.out or Path("runs") / name)
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    if restarted and (before := status.read(folder.path)) and before.state == "stopped":
        return RESUMABLE  # torchrun takes every exit for a failure, and would start again what was asked to stop
    early.check_data(args.data, settings)
    if early.is_finished(folder.path, settings, args.accept_changes):
        return 0
    if ranks.to_start(args.gpus):
        code = ranks.start("launch.train", sys.argv[1:] if argv is None else argv, args.gpus, args.restarts)
        ended = status.read(folder.path)
        return RESUMABLE if code and ended and ended.state == "stopped" else code
    stop = Stop(folder.stop)  # before torch, which is slow to import: a stop at that time is a stop
    from senet.run.run import train

    more = {"out": folder.path, "name": name, "overrides": tuple(args.overrides)}
    more |= {"source": source(args), "device": args.device}
    return train(settings, flags.collect(args, **more), stop)


if __name__ == "__main__":
    guard(main)
