"""Say what a net sees in pictures: the classes that it holds most likely, with their probabilities.

    python -m launch.predict runs/se50 dog.jpg
    python -m launch.predict timm:seresnet50 holiday/ --out holiday.png     # the pictures, with classes below them
    python -m launch.predict WHAT DIR ... --out FILE.csv                    # or .jsonl: a row a picture

WHAT is a checkpoint, the --out folder of a run (its best checkpoint) or of launch.export, a file of weights, or
timm:NAME. All images of a folder are taken, those in sub-folders, too. Pixels are made as in validation; what cannot be
decoded is named and left out. If folders are called after classes of the net, it also says how many of their pictures
are taken for another.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from launch import guard
from launch.flags import Parser, add_data_flags, add_net_flags, net, output, source, world_of
from senet.errors import UsageError
from senet.run.flags import limited

DRAWN = 60  # pictures on a sheet, at most


def main(argv: list[str] | None = None) -> int:
    args = _parse(argv)
    files = [file for path in args.images for file in _images(path)]

    from PIL import Image

    from senet.data.loader import Batch
    from senet.data.sheet import pictures
    from senet.report.predicted import sheet
    from senet.run.look import look_at_files
    from senet.system import files as whole
    from senet.train.evaluate import fused

    shown: list[Image.Image] = []

    def show(batch: Batch) -> None:
        if args.out and args.out.suffix == ".png" and len(shown) < DRAWN:
            shown.extend(pictures(batch.images, look_data))

    with world_of(args) as (world, _):
        trained = net(args)
        look_data = trained.config.data
        seen = look_at_files(trained, files, source(args), world, show)
        _, predictions = fused([seen.kept], world, args.top)
    rows = list(predictions.rows(seen.name, seen.classes))
    if args.out and args.out.suffix == ".png":
        names = [Path(row["image"]).name for row in rows[:DRAWN]]
        page = sheet(shown[:DRAWN], names, [row["top"] for row in rows[:DRAWN]])
        whole.replace(args.out, lambda temporary: page.save(temporary, "PNG"))
    elif args.out:
        predictions.write(args.out, seen.name, seen.classes)
    for row in rows if not args.out or len(rows) <= DRAWN else ():
        print(f"{row['image']}: " + ", ".join(f"{name} {100 * share:.1f} %" for name, share in row["top"]))
    known = predictions.labels >= 0
    if known.any():
        wrong = int((~predictions.right[known]).sum())
        share = 100 * wrong / known.sum()
        print(f"{wrong} of {known.sum()} pictures in folders of a class are taken for another: {share:.2f} %")
    if args.out:
        left = f", the first {DRAWN} of {len(rows)}" if args.out.suffix == ".png" and len(rows) > DRAWN else ""
        print(f"{args.out}: written{left}")
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser("launch.predict", __doc__)
    add_net_flags(parser)
    parser.add_argument("images", metavar="IMAGE|DIR", type=Path, nargs="+")
    parser.add_argument("--top", type=limited(int, "positive"), default=5, metavar="N", help="classes named for each")
    forms = output(".png", ".csv", ".jsonl")
    parser.add_argument("--out", type=forms, metavar="FILE", help="a .png sheet, or a .csv or .jsonl table")
    add_data_flags(parser)
    args = parser.parse_args(argv)
    if args.data:
        parser.error("--data has no effect: name the pictures, or their folder")
    return args


def _images(path: Path) -> list[Path]:
    """Return the image that a path names, or all below it. Raises UsageError if there is none."""
    from senet.data.storage.folders import ENDINGS, images_below

    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UsageError(f"{path}: no such file or folder; name pictures, or a folder of them")
    found = sorted(images_below(path, {}))
    if not found:
        raise UsageError(f"{path}: no picture in it or its sub-folders ({', '.join(ENDINGS)})")
    return [path / name for name in found]


if __name__ == "__main__":
    guard(main)
