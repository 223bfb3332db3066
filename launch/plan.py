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
from senet.run.flags import limited


def main(argv: list[str] | None = None) -> int:
    parser = Parser("launch.plan", __doc__)
    add_config(parser)
    positive, amount = limited(int, "positive"), limited(float, "positive")
    add = parser.add_argument_group("the GPUs").add_argument
    add("--gpus", type=positive, metavar="N", help="in all")
    add("--gpu", default="h100", metavar="NAME", help="h200, h100, a100, ...; an unknown one lists all")
    add("--gpus-per-node", type=positive, default=8, metavar="N", help="of one machine")
    stacks = ["eager", "compiled", "analytic", "triton", "epilogue"]
    add("--stack", choices=stacks, default="eager", help="how the net is computed, see --explain")
    add("--price", type=amount, metavar="$", help="of a GPU-hour")
    add = parser.add_argument_group("what is around them").add_argument
    add("--storage", type=amount, metavar="GB/s", help="that all nodes together can read")
    add("--network", type=amount, metavar="GB/s", help="of a node (default: the GPU's usual)")
    add("--cores", type=positive, metavar="N", help="CPU cores of a node")
    add("--images", type=positive, metavar="N", help="in training (default: ImageNet's or CIFAR's)")
    add("--image-kb", type=amount, default=110.0, metavar="KB", help="of an image file; 110 is ImageNet's mean")
    add = parser.add_argument_group("what is printed").add_argument
    add("--json", action="store_true", help="one JSON object instead of the page; seconds, GB, GB/s")
    add("--plot", type=Path, metavar="FILE.png", help="also draw throughput and efficiency by GPUs")
    add("--explain", action="store_true", help="print formulas and sources")
    args = parse_config(parser, argv, required=False)
    if args.explain:
        from senet.plan import report

        print(report.explain())
        return 0
    if args.config is None or args.gpus is None:
        parser.error("a config and --gpus N are needed (or --explain)")
    settings = config.load(args.config, args.overrides)

    from senet.plan import planner, report
    from senet.report import paper

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
    if args.json:
        print(json.dumps(report.as_dict(settings, found)))
    else:
        print(report.page(settings, name, found, paper.expected(settings)))
    if args.plot:
        report.draw(settings, name, found, args.plot)
    return 0


if __name__ == "__main__":
    guard(main)
