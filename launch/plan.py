"""What a training takes on GPUs that are not rented yet: hours, money, storage, network, cores, checkpoints. Needs
neither data nor GPU.

    python -m launch.plan configs/imagenet/se_resnet50.yaml precision=bf16 --gpus 64 [--gpu h100] [--price 3]

--json prints it all, --plot FILE.png draws throughput and efficiency from 1 to 2,048 GPUs, --explain tells formulas and
sources.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from launch import guard
from launch.flags import add_config, parse_config, run_name
from senet import config


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="launch.plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config(parser)
    parser.add_argument("--gpus", type=int, metavar="N", help="in all")
    parser.add_argument(
        "--gpu", default="h100", metavar="NAME", help="h200, h100 (default), a100, ...; a wrong one lists all"
    )
    parser.add_argument("--gpus-per-node", type=int, default=8, metavar="N", help="default 8")
    parser.add_argument(
        "--stack",
        choices=["eager", "compiled", "analytic", "triton", "epilogue"],
        default="eager",
        help="how the net is computed, in the bench's words; see --explain (default: eager)",
    )
    parser.add_argument("--price", type=float, metavar="$", help="of a GPU-hour")
    parser.add_argument("--storage", type=float, metavar="GB/s", help="that all nodes together can read")
    parser.add_argument("--network", type=float, metavar="GB/s", help="of a node (default: the GPU's usual)")
    parser.add_argument("--cores", type=int, metavar="N", help="CPU cores of a node")
    parser.add_argument("--images", type=int, metavar="N", help="in training (default: ImageNet's or CIFAR's)")
    parser.add_argument(
        "--image-kb",
        type=float,
        default=110.0,
        metavar="KB",
        help="size of an image file (default 110, ImageNet's mean)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the page; seconds, GB, GB/s")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="also draw the scaling curve")
    parser.add_argument("--explain", action="store_true", help="print formulas and sources")
    args = parse_config(parser, argv, required=False)
    if args.explain:
        from senet.plan import report

        print(report.explain())
        return 0
    if args.config is None or args.gpus is None:
        parser.error("a config and --gpus N are needed (or --explain)")
    settings = config.load(args.config, args.overrides)

    from senet.plan import planner, report

    wish = planner.Request(
        gpus=args.gpus,
        gpu=args.gpu.lower(),
        per_node=args.gpus_per_node,
        stack=args.stack,
        price=args.price,
        storage=args.storage,
        network=args.network,
        cores=args.cores,
        images=args.images,
        image_kb=args.image_kb,
    )
    found, name = planner.plan(settings, wish), run_name(args.config)
    print(json.dumps(report.as_dict(settings, found)) if args.json else report.page(settings, name, found))
    if args.plot:
        report.draw(settings, name, found, args.plot)
    return 0


if __name__ == "__main__":
    guard(main)
