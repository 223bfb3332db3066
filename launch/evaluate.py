"""Top-1 and top-5 error of a checkpoint, each validation image counted once.

    python -m launch.evaluate runs/imagenet/se_resnet50 --data DIR --gpus 8 [--json]

WHAT is a checkpoint, the --out folder of a run (its best checkpoint), or timm:NAME: a model of timm with its released
weights, or with those in --weights.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

from launch import guard, ranks
from launch.flags import Parser, add_data_flags, source

log = logging.getLogger("senet.evaluate")


def main(argv: list[str] | None = None) -> int:
    parser = Parser("launch.evaluate", __doc__)
    parser.add_argument("what", metavar="CHECKPOINT|timm:NAME")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="timm:NAME: its weights, instead of a download")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object: images, loss, top1_error, top5_error"
    )
    add_data_flags(parser)
    parser.add_argument("--gpus", type=int, metavar="N", help="start N ranks on this machine, one a GPU")
    args = parser.parse_args(argv)
    if ranks.to_start(args.gpus):
        return ranks.start("launch.evaluate", sys.argv[1:] if argv is None else argv, args.gpus)

    from senet import distributed
    from senet.data.source import val_loader
    from senet.execution.execution import prepare
    from senet.run.changes import check_pixels
    from senet.run.load import load
    from senet.run.voice import speaking
    from senet.track import Terminal
    from senet.train.evaluate import VIEWS, evaluate
    from senet.train.trainer import DTYPES

    with distributed.start(args.device) as world, speaking(world, Terminal().say) as voice:
        trained = load(args.what, args.weights)
        config, execution = trained.config, trained.execution
        view, on_rank = VIEWS["centre"], (world.rank, world.size, world.device)
        loader = val_loader(view.data(config.data), source(args), *on_rank, DTYPES[config.precision])
        loader.memory_format = execution.memory_format
        if trained.pixels is not None:
            check_pixels(trained.pixels, loader.description)
        voice.gather()
        errors = evaluate(prepare(trained.net.to(world.device), execution), loader, config, world, view=view)
        for path, reason in loader.bad.items():
            log.warning("not counted: %s: %s", path, reason)
        voice.gather()
        loader.close()
    if world.is_main and args.json:
        print(json.dumps(errors))
    elif world.is_main:
        top1, top5 = errors["top1_error"], errors["top5_error"]
        print(
            f"{args.what}: top-1 error {top1:.2f} %, top-5 error {top5:.2f} %, loss {errors['loss']:.4f}, "
            f"{errors['images']} images"
        )
    return 0


if __name__ == "__main__":
    guard(main)
