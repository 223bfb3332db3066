"""Bring a data set into the form that training reads.

    python -m launch.prepare demo runs/demo
    python -m launch.prepare cifar10 data/cifar10 [--archive cifar-10-python.tar.gz] [--to-png data/cifar10-png]
    python -m launch.prepare imagenet data/imagenet --train-tar ILSVRC2012_img_train.tar \\
        --val-tar ILSVRC2012_img_val.tar --devkit ILSVRC2012_devkit_t12.tar.gz
    python -m launch.prepare imagenet data/imagenet --kaggle imagenet-object-localization-challenge.zip
    python -m launch.prepare shards data/imagenet data/shards
    python -m launch.prepare shards data/imagenet data/decoded --decoded --short-side 256
    python -m launch.prepare audit data/imagenet

A second run reuses what the first one made; an interrupted one is finished by running it again.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from launch import guard
from launch.flags import Parser


def main(argv: list[str] | None = None) -> int:
    parser = Parser("launch.prepare", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, description: str, *folders: str) -> Any:
        program = commands.add_parser(name, help=description)
        for folder, metavar in zip(["source", "folder"][-len(folders) :], folders, strict=True):
            program.add_argument(folder, type=Path, metavar=metavar)
        count = "how many work at once (default: one per core)"
        program.add_argument("--processes", type=int, metavar="N", help=count)
        return program.add_argument

    add = command("demo", "draw a small data set: ten classes of shapes and textures, in ImageNet's layout", "DIR")
    add("--train", type=int, default=2000, metavar="N", help="training images")
    add("--val", type=int, default=500, metavar="N", help="validation images")
    add("--seed", type=int, default=0, help="other seed, other pictures")
    for name in ("cifar10", "cifar100"):
        add = command(name, f"unpack {name} from its published archive", "DIR")
        archive = "python or binary version, .tar.gz (default: download it)"
        add("--archive", type=Path, metavar="FILE", help=archive)
        add("--no-checksum", action="store_true", help="do not compare with published MD5 sums")
        png = "also write OUT/train/CLASS/*.png and OUT/val/CLASS/*.png"
        add("--to-png", type=Path, metavar="OUT", help=png)
    published = "folders or shards from ILSVRC2012 as published, unpacked or from Kaggle; one split will do"
    imagenet = add = command("imagenet", published, "DIR")
    train = "ILSVRC2012_img_train.tar, or a folder with class tars, class folders or both"
    add("--train-tar", "--train", type=Path, metavar="PATH", help=train)
    val = "ILSVRC2012_img_val.tar, or a folder with its images; with --devkit or --val-labels"
    add("--val-tar", "--val", type=Path, metavar="PATH", help=val)
    add("--devkit", type=Path, metavar="PATH", help="ILSVRC2012_devkit_t12.tar.gz, or its folder")
    labels = "a wnid per line in order of names, FILENAME WNID, FILENAME NUMBER (Caffe's val.txt), or Kaggle's CSV"
    add("--val-labels", type=Path, metavar="FILE", help=labels)
    add("--kaggle", type=Path, metavar="PATH", help="Kaggle's download: the zip, or its folder")
    add("--shards", action="store_true", help="write shards (WebDataset tars) instead of folders")
    add("--partial", action="store_true", help="only warn if images or classes are missing")
    any_form = "from a set in any form: folders, shards, Parquet ..."
    shards = command("shards", f"WebDataset tars {any_form}", "FROM", "TO")
    folders = command("folders", f"image folders {any_form}", "FROM", "TO")
    for add in (imagenet, shards):
        add("--shard-mb", type=int, default=256, metavar="MB", help="size of a shard")
        add("--decoded", action="store_true", help="keep pixels: large, and read by few cores")
        add("--fraction", type=float, default=1.0, metavar="F", help="decode this part of the images only")
    for add in (imagenet, shards, folders):
        add("--short-side", type=int, metavar="N", help="make training images smaller whose shorter side is longer")
        add("--quality", type=int, default=90, metavar="Q", help="of those, as JPEG")
        shrink = "make (or decode) validation images too: errors change by it"
        add("--shrink-val", action="store_true", help=shrink)
    command("audit", "decode every image of a data set; training leaves out what cannot be", "DIR")
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    if args.command == "audit":
        from senet.prepare.audit import audit

        return audit(args.folder, args.processes)
    print(*_prepare(args), sep="\n")
    return 0


def _prepare(args: argparse.Namespace) -> list[str]:
    """Prepare what is asked for; returns what was done, in sentences."""
    if args.command == "demo":
        from senet.prepare.demo import Demo, prepare

        return [prepare(args.folder, Demo(args.train, args.val, args.seed), args.processes)]
    if args.command in ("imagenet", "shards", "folders"):
        from senet.prepare import imagenet
        from senet.prepare.convert import convert
        from senet.prepare.encoding import Encoding
        from senet.prepare.shards import Packing

        in_shards = args.command == "shards" or (args.command == "imagenet" and (args.shards or args.decoded))
        decoded = (args.decoded, args.fraction) if args.command != "folders" else ()
        encoding = Encoding(args.short_side, args.quality, args.shrink_val, *decoded)
        output = Packing(args.shard_mb, encoding=encoding) if in_shards else encoding
        if args.command != "imagenet":
            return convert(args.source, args.folder, output, args.processes)
        sources = imagenet.Sources(args.train_tar, args.val_tar, args.devkit, args.val_labels, args.kaggle)
        return imagenet.prepare(args.folder, sources, output, args.partial, args.processes)
    from senet.prepare import cifar

    done = [cifar.prepare(args.command, args.folder, args.archive, checksum=not args.no_checksum)]
    if args.to_png is not None:
        from senet.prepare.png import export

        done += export(args.command, args.folder, args.to_png, not args.no_checksum, args.processes)
    return done


if __name__ == "__main__":
    guard(main)
