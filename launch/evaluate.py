"""Top-1 and top-5 error of a net, each validation image counted once, by any number of ranks.

    python -m launch.evaluate runs/imagenet/se_resnet50 --data DIR --gpus 8 [--json]
    python -m launch.evaluate WHAT --data DIR --crop 224,288,320 --ten-crop       # several views, and their mean
    python -m launch.evaluate WHAT WHAT WHAT --data DIR                           # an ensemble
    python -m launch.evaluate WHAT --data DIR --per-class --predictions FILE.csv --real real.json

WHAT is a checkpoint, the --out folder of a run (its best checkpoint) or of launch.export, a file of weights (of this
project or another library), or timm:NAME: a model of timm with its released weights, or with those in --weights. If
several nets or views look at the images, the mean of their probabilities counts.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch import early, guard, ranks
from launch.flags import Parser, add_data_flags, add_net_flags, net, output, source, world_of
from senet.errors import UsageError

if TYPE_CHECKING:
    from senet.run.look import Look
    from senet.train.evaluate import View
    from senet.train.predictions import Predictions
    from senet.train.real import Labels

SHOWN = 20  # classes and confusions in a table


def main(argv: list[str] | None = None) -> int:
    args = _parse(argv)
    early.check_data(args.data)
    if ranks.to_start(args.gpus):
        return ranks.start("launch.evaluate", sys.argv[1:] if argv is None else argv, args.gpus)

    from senet.run.look import look
    from senet.train.evaluate import fused
    from senet.train.real import read

    real = read(args.real) if args.real else None
    with world_of(args) as (world, voice):
        passes: list[Look] = []
        for what in args.what:
            for view in _views(args):
                passes.append(look(net(args, what), source(args), world, view))
                voice.gather()
        first = passes[0]
        if other := next((each for each in passes if each.folders != first.folders), None):
            raise UsageError(f"{other.what}: other classes than {first.what}; an ensemble needs the same")
        errors, predictions = fused([each.kept for each in passes], world)
    if not world.is_main:
        return 0
    facts = _facts(passes, errors if len(passes) > 1 else first.errors, predictions, real)
    if args.predictions:
        predictions.write(args.predictions, first.name, first.classes)
    if args.json:
        print(json.dumps(facts))
        return 0
    for each in passes if len(passes) > 1 else ():
        print(f"{each.what}, {each.view}: {_words(each.errors)}")
    shown = f"{args.what[0]}" if len(passes) == 1 else f"the mean of {len(passes)}"
    low, high = facts["top1_interval"]
    print(f"{shown}: {_words(facts)}, loss {facts['loss']:.4f}, {facts['images']} images")
    print(f"95 % interval of the top-1 error: {low:.2f} to {high:.2f} %")
    if args.real:
        print(f"with ReaL labels: top-1 error {facts['real_top1_error']:.2f} % on {facts['real_images']} images")
    if args.per_class:
        print("\n" + _tables(facts))
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser("launch.evaluate", __doc__)
    add_net_flags(parser, nargs="+")
    every = "print one JSON object: errors, intervals, passes, classes, confusions"
    parser.add_argument("--json", action="store_true", help=every)
    ranks.add_flags(parser, restarts=False)
    add_data_flags(parser, again=True)
    add = parser.add_argument_group("views of an image: the mean of the probabilities counts").add_argument
    add("--crop", type=_pixels, metavar="N[,N...]", help="pixels seen (default: the config's)")
    side = "shorter side before the crop (default: in the config's ratio)"
    add("--resize", type=_pixels, metavar="N[,N...]", help=side)
    add("--flip", action="store_true", help="each image and its mirror image")
    add("--ten-crop", action="store_true", help="corners and centre of the central square, all mirrored")
    add = parser.add_argument_group("what is counted").add_argument
    add("--per-class", action="store_true", help="print the worst classes and the most frequent confusions")
    table = output(".csv", ".jsonl")
    add("--predictions", type=table, metavar="FILE", help="write each image's to a .csv or .jsonl file")
    add("--real", type=Path, metavar="FILE", help="ImageNet-ReaL's labels, real.json: count by them, too")
    args = parser.parse_args(argv)
    if args.weights and not args.what[0].startswith("timm:"):
        parser.error("--weights goes with timm:NAME; a checkpoint brings its own")
    given = [len(sizes) for sizes in (args.crop, args.resize) if sizes]
    if len(set(given) - {1}) > 1:
        parser.error(f"--crop names {given[0]} sizes and --resize {given[1]}; give as many of each, or one of either")
    return args


def _pixels(text: str) -> list[int]:
    if not all(part.isdigit() and int(part) for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of pixels, or several separated by commas")
    return [int(part) for part in text.split(",")]


def _views(args: argparse.Namespace) -> list[View]:
    from senet.train.evaluate import View

    crops, resizes = args.crop or [None], args.resize or [None]
    many = max(len(crops), len(resizes))
    sizes = zip(crops * (many // len(crops)), resizes * (many // len(resizes)), strict=True)
    return [View(crop, resize, args.ten_crop, args.flip) for crop, resize in sizes]


def _facts(
    passes: list[Look], errors: dict[str, float], predictions: Predictions, real: Labels | None
) -> dict[str, Any]:
    """Return what --json prints."""
    from senet.train.predictions import by_class, interval, pairs

    first, count = passes[0], passes[0].config.data.classes
    facts: dict[str, Any] = dict(errors)
    for top in ("top1", "top5"):
        facts[f"{top}_interval"] = interval(errors[f"{top}_error"], int(errors["images"]))
    if len(passes) > 1:
        facts["passes"] = [{"what": each.what, "view": str(each.view), **each.errors} for each in passes]
    if real:
        from senet.train.real import real_errors

        facts |= real_errors(predictions, first.name, first.folders, real)
    facts["classes"] = [row.named(first.classes) for row in by_class(predictions, count)]
    facts["confusions"] = [[first.classes[i], first.classes[j], n] for i, j, n in pairs(predictions, count)[:SHOWN]]
    return facts


def _words(errors: dict[str, Any]) -> str:
    return f"top-1 error {errors['top1_error']:.2f} %, top-5 error {errors['top5_error']:.2f} %"


def _tables(facts: dict[str, Any]) -> str:
    from senet.system import table

    rows = sorted(facts["classes"], key=lambda row: -row["error"])
    header = ["class", "images", "top-1 error %", "top-5 error %", "precision %", "mostly taken for"]
    worst = table.text(header, [list(row.values()) for row in rows[:SHOWN]])
    return f"{worst}\n\n{table.text(['class', 'taken for', 'images'], facts['confusions'])}"


if __name__ == "__main__":
    guard(main)
