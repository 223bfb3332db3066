"""What a training takes on GPUs that are not rented yet: hours, money, storage, network, cores, checkpoints. Needs
neither data nor GPU.

    python -m launch.plan se_resnet50 precision=bf16 --gpus 64 [--gpu h100] [--price 3]

senet/plan/README.md says how a plan is made and how far off it may be.
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

from launch import guard
from launch.flags import Parser, add_config, parse_config, run_name
from senet import config


def main(argv: list[str] | None = None) -> int:
    parser = Parser("launch.plan", __doc__)
    add_config(parser)
    add = parser.add_argument_group("the GPUs").add_argument
    add("--gpus", type=int, metavar="N", help="in all")
    add(
        "--gpu",
        type=str.lower,
        default="h100",
        metavar="NAME",
        help="b200, h200, h100, a100, v100, l40s, rtx4090 or rtx3090",
    )
    add("--gpus-per-node", dest="per_node", type=int, default=8, metavar="N", help="of one machine")
    stacks = ["eager", "compiled", "analytic", "triton", "epilogue"]
    add("--stack", choices=stacks, default="eager", help="how the net is computed, see --explain")
    add("--price", type=float, metavar="$", help="of a GPU-hour")
    add = parser.add_argument_group("what is around them").add_argument
    add("--storage", type=float, metavar="GB/s", help="that all nodes together can read")
    add("--network", type=float, metavar="GB/s", help="of a node (default: the GPU's usual)")
    add("--cores", type=int, metavar="N", help="CPU cores of a node")
    add("--images", type=int, metavar="N", help="in training (default: ImageNet's or CIFAR's)")
    add("--image-kb", type=float, default=110.0, metavar="KB", help="of an image file; 110 is ImageNet's mean")
    add = parser.add_argument_group("what is printed").add_argument
    add("--json", action="store_true", help="one JSON object instead of the page; seconds, GB, GB/s")
    add("--plot", type=Path, metavar="FILE.png", help="also draw throughput and efficiency by GPUs")
    add("--explain", action="store_true", help="print formulas and sources")
    args = parse_config(parser, argv, required=False)
    if not args.explain and (args.config is None or args.gpus is None):
        parser.error("a config and --gpus N are needed (or --explain)")
    settings = None if args.explain else config.load(args.config, args.overrides)

    from senet.plan import report
    from senet.plan.planner import Plan, Request
    from senet.report import paper

    if settings is None:
        print(report.explain())
        return 0
    request = Request(**{field.name: getattr(args, field.name) for field in fields(Request)})
    found, name = Plan(settings, request), run_name(args.config)
    print(json.dumps(report.as_dict(found)) if args.json else report.page(name, found, paper.expected(settings)))
    if args.plot:
        report.draw(name, found, args.plot)
    return 0


if __name__ == "__main__":
    guard(main)
