"""Look at everything that a run needs, on all its ranks, before it is started.

    python -m launch.doctor
    torchrun --nnodes=2 --nproc-per-node=8 ... -m launch.doctor \\
        configs/imagenet/se_resnet50.yaml --data $IMAGENET --out runs/se50

With --speed it trains for some seconds instead and says what bounds: data, net or communication, and what to change.
The net is computed as the run in --out does, as flags say, or as --tune finds.

    torchrun --standalone --nproc-per-node=8 -m launch.doctor --speed configs/imagenet/se_resnet50.yaml --data $IMAGENET

Exit codes: 0 fit (perhaps with warnings), 1 something failed, 2 usage or config.
"""

from __future__ import annotations

import sys
from pathlib import Path

from launch import guard
from launch.flags import Parser, add_config, add_data_flags, parse_config, run_name, source, world_of
from senet import config
from senet.run import flags
from senet.run.flags import limited
from senet.system.run_folder import RunFolder


def main(argv: list[str] | None = None) -> int:
    parser = Parser("launch.doctor", __doc__)
    add_config(parser)
    add = parser.add_argument
    add("--out", type=Path, help="run folder: where checkpoints will be written (default: runs/CONFIG)")
    add("--speed", action="store_true", help="measure loader, net and all-reduce alone and together; needs a config")
    seconds = limited(float, "positive")
    add("--seconds", type=seconds, default=4.0, metavar="S", help="--speed: of each measurement")
    add_data_flags(parser)
    flags.add(parser, only=flags.HOW)
    args = parse_config(parser, argv, required=False)
    flags.check(parser, args)
    if args.speed and not args.config:
        parser.error("--speed needs a config")
    settings = config.load(args.config, args.overrides) if args.config else None
    out = args.out or Path("runs") / (run_name(args.config) if args.config else "")

    from senet.diagnose.doctor import examine

    failed = False
    with world_of(args) as (world, _):
        if args.speed and settings:
            from senet.diagnose import speed
            from senet.run import step_plan

            if world.is_main:
                print(f"measuring, in about {5 * args.seconds:.0f} s besides what starting takes", file=sys.stderr)
            asked, file = flags.execution(args), RunFolder(out).execution
            how = step_plan.decide(settings, world, file, asked, args.largest_batch, args.tune)
            found = speed.measure(world, settings, source(args), how, args.seconds)
            if world.is_main:
                print(speed.page(found, settings, source(args), how, world))
            return 0
        for finding in examine(world, settings, source(args), out):
            failed = failed or finding.level == "fail"
            if world.is_main:
                print(f"{finding.level:5} {finding.what:20} {finding.text}", flush=True)
    return int(failed)


if __name__ == "__main__":
    guard(main)
