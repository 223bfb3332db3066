"""Print what a config comes to: settings, size, learning rates. Needs neither data nor GPU.

    python -m launch.show configs/imagenet/se_resnet50.yaml [key=value ...] [--json]

With --batch it draws the first training images as the net sees them, augmentation and all:

    python -m launch.show configs/imagenet/se_resnet50.yaml --data DIR --batch sheet.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import yaml

from launch import guard
from launch.flags import add_data_flags, source
from senet import config
from senet.train.schedule import learning_rate


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="launch.show", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="FILE.yaml or FILE.yaml:VARIANT")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument(
        "--json",
        action="store_true",
        help="one JSON object: config, parameters, gmacs, learning_rate (at the start of each epoch)",
    )
    parser.add_argument(
        "--batch", type=Path, metavar="FILE.png", help="draw a contact sheet of augmented images instead; needs --data"
    )
    add_data_flags(parser)
    args = parser.parse_intermixed_args(argv)
    settings = config.load(args.config, args.overrides)

    if args.batch:
        from senet.data import sheet

        print(sheet.draw(settings, source(args), args.batch))
        return 0
    if args.data:
        parser.error("--data has no effect without --batch")

    from senet.models import summary

    size = summary(settings.net, settings.data.classes, settings.data.crop)
    rates = [
        learning_rate(settings.schedule, settings.optim.lr, float(epoch), settings.epochs)
        for epoch in range(settings.epochs)
    ]
    tree = config.to_dict(settings)
    if args.json:
        print(json.dumps({"config": tree, "parameters": size.parameters, "gmacs": size.gmacs, "learning_rate": rates}))
        return 0
    print(yaml.safe_dump(tree, sort_keys=False), end="")
    print(
        f"\nparameters: {size.parameters:,}\ngmacs: {size.gmacs:.4f}   (multiply-adds, one image of "
        f"{settings.data.crop} px)"
    )
    print("learning rate at the start of each epoch:")
    for first, last, rate in _runs(rates):
        print(f"  {first + 1}{f'-{last + 1}' if last > first else ''}: {rate:.6g}")
    return 0


def _runs(rates: list[float]) -> list[tuple[int, int, float]]:
    """Epochs of equal rate, joined: (first, last, rate)."""
    runs: list[tuple[int, int, float]] = []
    for epoch, rate in enumerate(rates):
        if runs and runs[-1][2] == rate:
            runs[-1] = (runs[-1][0], epoch, rate)
        else:
            runs.append((epoch, epoch, rate))
    return runs


if __name__ == "__main__":
    guard(main)
