"""Train a network.

    torchrun --standalone --nproc-per-node=8 -m launch.train configs/imagenet/se_resnet50.yaml --data DIR

The same command goes on from the newest checkpoint in --out. Exit codes: 0 done, 2 usage or config, 75 stopped early, 1
else.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from launch import guard
from launch.flags import add_config, add_data_flags, add_execution_flags, execution, parse_config, run_name, source
from senet import config
from senet.run import status
from senet.run.stop import RESUMABLE, Stop


def parse(words: list[str] | None) -> argparse.Namespace:
    """The command line, its flags checked; `launch.submit` checks with it what it passes on."""
    parser = argparse.ArgumentParser(
        prog="launch.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config(parser)
    parser.add_argument("--out", type=Path, help="run folder (default: runs/CONFIG)")
    add_data_flags(parser)
    parser.add_argument(
        "--save-minutes", type=float, default=15.0, metavar="M", help="checkpoint also within an epoch, every M minutes"
    )
    parser.add_argument(
        "--keep", type=int, default=2, metavar="K", help="newest checkpoints kept, besides the best (default 2)"
    )
    parser.add_argument(
        "--keep-every", type=int, default=0, metavar="N", help="also keep the checkpoint of every N-th epoch"
    )
    parser.add_argument(
        "--keep-hours", type=float, default=0.0, metavar="H", help="also keep one checkpoint every H hours"
    )
    parser.add_argument(
        "--accept-changes", action="store_true", help="go on in --out with other settings than before (not another net)"
    )
    parser.add_argument(
        "--max-skips",
        type=int,
        default=10,
        metavar="N",
        help="steps in a row with gradients not finite before going back (default 10)",
    )
    parser.add_argument(
        "--hang-minutes",
        type=float,
        default=5.0,
        metavar="M",
        help="a step that takes longer ends the run, for torchrun to restart it",
    )
    parser.add_argument(
        "--log-every", type=int, default=50, metavar="STEPS", help="steps between log records (default 50)"
    )
    parser.add_argument(
        "--track",
        choices=["auto", "none", "wandb"],
        default="auto",
        help="auto: W&B when a login or WANDB_MODE is there",
    )
    parser.add_argument(
        "--deterministic", action="store_true", help="on a GPU: cuDNN's deterministic algorithms, at some cost in speed"
    )
    add_execution_flags(parser)
    args = parse_config(parser, words)
    args.execution = execution(parser, args)
    for flag in ("save_minutes", "keep", "max_skips", "hang_minutes", "log_every"):
        if getattr(args, flag) <= 0:
            parser.error(f"--{flag.replace('_', '-')} must be positive")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    settings = config.load(args.config, args.overrides)
    name = run_name(args.config)
    out = args.out or Path("runs") / name
    if (
        os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
        and (stands := status.read(out))
        and stands.state == "stopped"
    ):
        return RESUMABLE  # torchrun takes every exit for a failure, and would start again what was asked to stop
    stop = Stop(out / "stop")  # before torch, which is slow to import: a stop at that time is a stop
    from senet.run.run import Flags, train

    flags = Flags(
        out=out,
        name=name,
        source=source(args),
        device=args.device,
        largest_batch=args.largest_batch,
        save_minutes=args.save_minutes,
        keep=args.keep,
        keep_every=args.keep_every,
        keep_hours=args.keep_hours,
        accept_changes=args.accept_changes,
        max_skips=args.max_skips,
        hang_minutes=args.hang_minutes,
        log_every=args.log_every,
        track=args.track,
        deterministic=args.deterministic,
        execution=args.execution,
        tune=args.tune,
    )
    return train(settings, flags, stop)


if __name__ == "__main__":
    guard(main)
