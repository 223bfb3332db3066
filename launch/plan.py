"""What a training takes on GPUs that are not rented yet: hours, money, storage, network, cores, checkpoints. Needs
neither data nor GPU.

    python -m launch.plan se_resnet50 precision=bf16 --gpus 64 [--gpu h100] [--price 3]

senet/plan/README.md says how a plan is made and how far off it may be.
"""

from __future__ import annotations

import json
from pathlib import Path

from launch import guard
from launch.flags import Parser, add_config, parse_config, run_name
from senet import config


def main(argv: list[str] | None = None) -> int:
    parser = Parser("launch.plan", __doc__)
    add_config(parser)
    parser.add_argument("--gpus", type=int, metavar="N", help="in all")
    known = "h200, h100 (default), a100, ...; an unknown one lists all"
    parser.add_argument("--gpu", default="h100", metavar="NAME", help=known)
    parser.add_argument("--gpus-per-node", type=int, default=8, metavar="N", help="default 8")
    stacks = ["eager", "compiled", "analytic", "triton", "epilogue"]
    how = "how the net is computed, see --explain (default eager)"
    parser.add_argument("--stack", choices=stacks, default="eager", help=how)
    parser.add_argument("--price", type=float, metavar="$", help="of a GPU-hour")
    parser.add_argument("--storage", type=float, metavar="GB/s", help="that all nodes together can read")
    parser.add_argument("--network", type=float, metavar="GB/s", help="of a node (default: the GPU's usual)")
    parser.add_argument("--cores", type=int, metavar="N", help="CPU cores of a node")
    parser.add_argument("--images", type=int, metavar="N", help="in training (default: ImageNet's or CIFAR's)")
    size = "of an image file (default 110, ImageNet's mean)"
    parser.add_argument("--image-kb", type=float, default=110.0, metavar="KB", help=size)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the page; seconds, GB, GB/s")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="also draw throughput and efficiency by GPUs")
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

    request = planner.Request(
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
    found, name = planner.plan(settings, request), run_name(args.config)
    print(json.dumps(report.as_dict(settings, found)) if args.json else report.page(settings, name, found))
    if args.plot:
        report.draw(settings, name, found, args.plot)
    return 0


if __name__ == "__main__":
    guard(main)
