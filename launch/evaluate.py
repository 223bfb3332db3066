"""Top-1 and top-5 error of a checkpoint, each validation image counted once.

    torchrun --standalone --nproc-per-node=8 -m launch.evaluate runs/imagenet/se_resnet50 --data $IMAGENET [--json]

WHAT is a checkpoint, the --out folder of a run (its best checkpoint), or timm:NAME: a model of timm with its released
weights, or with those in --weights.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from launch import guard
from launch.flags import add_data_flags, source


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="launch.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", metavar="CHECKPOINT|timm:NAME")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="timm:NAME: its weights, instead of a download")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object: images, loss, top1_error, top5_error"
    )
    add_data_flags(parser)
    args = parser.parse_args(argv)

    from senet import distributed
    from senet.data.source import val_loader
    from senet.execution.execution import prepare
    from senet.run.load import load
    from senet.train.evaluate import evaluate
    from senet.train.trainer import DTYPES

    with distributed.start(args.device) as world:
        config, net, pixels, execution = load(args.what, args.weights)
        ranks = (world.rank, world.size, world.device)
        loader = val_loader(config.data, source(args), *ranks, DTYPES[config.precision])
        loader.memory_format = execution.memory_format
        if world.is_main and pixels is not None:
            for name, was in pixels.items():
                if loader.description.get(name) != was:
                    now = loader.description.get(name)
                    print(
                        f"warning: other pixels than in training: {name} was {was!r}, is {now!r}; errors may differ",
                        file=sys.stderr,
                    )
        errors = evaluate(prepare(net.to(world.device), execution), loader, config, world)
        bad = {path: reason for part in world.all_gather_object(dict(loader.bad)) for path, reason in part.items()}
        loader.close()
    if world.is_main:
        for path, reason in bad.items():
            print(f"warning: not counted: {path}: {reason}", file=sys.stderr)
        if args.json:
            print(json.dumps(errors))
        else:
            print(
                f"{args.what}: top-1 error {errors['top1_error']:.2f} %, top-5 error {errors['top5_error']:.2f} %,",
                end=" ",
            )
            print(f"loss {errors['loss']:.4f}, {errors['images']} images")
    return 0


if __name__ == "__main__":
    guard(main)
