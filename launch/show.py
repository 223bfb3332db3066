"""Print what a config comes to: settings, size, learning rates, steps. Needs neither data nor GPU.

    python -m launch.show configs/imagenet/se_resnet50.yaml [key=value ...] [--full | --json]

With --batch it draws the first training images as the net sees them, augmentation and all:

    python -m launch.show configs/imagenet/se_resnet50.yaml --data DIR --batch sheet.png

With --schema it prints the JSON schema of config files, by which editors complete keys and underline wrong ones. With
--sizes it counts every config of this repository, and writes tests/golden/complexity.yaml and the table of sizes in
configs/README.md.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import yaml

from launch import guard
from launch.flags import Parser, add_config, add_data_flags, parse_config, source
from senet import config
from senet.train.schedule import learning_rate

IMAGENET = 1_281_167  # training images of a folder with 1,000 classes
SHOWN = 8  # learning rates of a schedule
# Settings that are shown first, and even if they have their defaults.
ALWAYS = (
    "net", "data", "optim", "schedule", "batch", "epochs", "precision",
    "family", "timm", "block", "blocks", "widths", "se", "ratio", "kind",
    "set", "classes", "crop", "name", "lr", "momentum", "weight_decay", "shape", "milestones", "gamma", "warmup",
)  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = Parser("launch.show", __doc__)
    add_config(parser)
    add = parser.add_mutually_exclusive_group().add_argument
    add("--full", action="store_true", help="every setting, also those that have their defaults")
    facts = "config, parameters, gmacs, learning_rate (as epochs begin), steps, warnings"
    add("--json", action="store_true", help=f"one JSON object: {facts}")
    add("--schema", action="store_true", help="print the JSON schema of config files, of no config")
    add("--sizes", action="store_true", help="write the sizes of all configs, of no config given")
    drawn = "draw a contact sheet of augmented images instead; needs --data"
    add("--batch", type=Path, metavar="FILE.png", help=drawn)
    add_data_flags(parser)
    words = sys.argv[1:] if argv is None else argv
    if "--schema" in words:
        print(json.dumps(config.json_schema(), indent=1))
        return 0
    if "--sizes" in words:
        from senet.models import sizes

        print("\n".join(map(str, sizes.write(Path(__file__).parent.parent))))
        return 0
    args = parse_config(parser, argv)
    if args.data and not args.batch:
        parser.error("--data has no effect without --batch")
    settings = config.load(args.config, args.overrides)
    if args.batch:
        from senet.data import sheet

        print(sheet.draw(settings, source(args), args.batch))
        return 0

    from senet.models import summary

    data, schedule, epochs = settings.data, settings.schedule, settings.epochs
    size, tree = summary(settings.net, data.classes, data.crop), config.to_dict(settings)
    rates = [learning_rate(schedule, settings.optim.lr, float(epoch), epochs) for epoch in range(epochs)]
    images = data.train_images if not isinstance(data, config.Folder) else IMAGENET if data.classes == 1000 else None
    steps = images // settings.batch if images else None
    if args.json:
        more = {"learning_rate": rates, "steps_per_epoch": steps, "warnings": config.warnings(settings)}
        print(json.dumps({"config": tree, "parameters": size.parameters, "gmacs": size.gmacs, **more}))
        return 0
    if args.full:
        print(yaml.safe_dump(tree, sort_keys=False), end="")
    else:
        print(f"# {args.config}   (every setting: --full)")
        for key, value in _brief(settings, tree).items():
            flow = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6)
            print(f"{key}: {flow.splitlines()[0]}")
    one = f"multiply-adds, one image of {data.crop} px"
    print(f"\nsize: {size.parameters:,} parameters, {size.gmacs:.4g} GMACs ({one})")
    print(f"learning rate, as epochs begin: {'; '.join(_rates(rates)) or 'none, no epoch is trained'}")
    if isinstance(schedule, config.Plateau):
        after = f"after more than {schedule.patience} epochs without a better validation loss"
        print(f"               but multiplied by {schedule.factor:g} {after}, each time")
    if steps is not None:
        print(f"steps: {steps:,} an epoch, {steps * epochs:,} in all, for {images:,} training images")
    for warning in config.warnings(settings):
        print(f"warning: {warning}")
    return 0


def _brief(settings: Any, plain: dict[str, Any]) -> dict[str, Any]:
    """Return, of settings and the same as plain data, those that differ from their defaults and those in ALWAYS."""
    usual = {field.name: field.default for field in dataclasses.fields(settings)}
    found: dict[str, Any] = {}
    for name in sorted(usual, key=lambda name: ALWAYS.index(name) if name in ALWAYS else len(ALWAYS)):
        value = getattr(settings, name)
        if name in ALWAYS or value != usual[name]:
            nested = dataclasses.is_dataclass(value)
            found[name] = _brief(value, plain[name]) if nested else plain[name]
    return found


def _rates(rates: list[float]) -> list[str]:
    """Describe the learning rates of epochs, counted from 1: runs of equal ones, at most SHOWN of them."""
    runs: list[tuple[int, int, float]] = []
    for rate, equal in itertools.groupby(rates):
        first = runs[-1][1] + 1 if runs else 1
        runs.append((first, first + len(list(equal)) - 1, rate))
    if len(runs) > SHOWN:
        highest = max(range(len(runs)), key=lambda index: runs[index][2])
        chosen = {round(index * (len(runs) - 1) / (SHOWN - 2)) for index in range(SHOWN - 1)} | {highest}
        runs = [runs[index] for index in sorted(chosen)]
    return [f"{rate:.4g} in epoch{f's {first}-{last}' if last > first else f' {first}'}" for first, last, rate in runs]


if __name__ == "__main__":
    guard(main)
