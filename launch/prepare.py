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

from launch import guard
from launch.flags import Parser


def main(argv: list[str] | None = None) -> int:
    parser = Parser("launch.prepare", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser(
        "demo", help="draw a small data set: ten classes of shapes and textures, in ImageNet's layout"
    )
    demo.add_argument("folder", type=Path, metavar="DIR")
    demo.add_argument("--train", type=int, default=2000, metavar="N", help="training images")
    demo.add_argument("--val", type=int, default=500, metavar="N", help="validation images")
    demo.add_argument("--seed", type=int, default=0, help="other seed, other pictures")
    _processes(demo)
    for name in ("cifar10", "cifar100"):
        cifar = commands.add_parser(name, help=f"unpack {name} from its published archive")
        cifar.add_argument("folder", type=Path, metavar="DIR")
        cifar.add_argument(
            "--archive", type=Path, metavar="FILE", help="python or binary version, .tar.gz (default: download it)"
        )
        cifar.add_argument("--no-checksum", action="store_true", help="do not compare with published MD5 sums")
        cifar.add_argument(
            "--to-png", type=Path, metavar="OUT", help="also write OUT/train/CLASS/*.png and OUT/val/CLASS/*.png"
        )
        _processes(cifar)
    imagenet = commands.add_parser(
        "imagenet", help="folders or shards from ILSVRC2012 as published, unpacked or from Kaggle; one split will do"
    )
    imagenet.add_argument("folder", type=Path, metavar="DIR")
    imagenet.add_argument(
        "--train-tar", "--train", type=Path, metavar="PATH",
        help="ILSVRC2012_img_train.tar, or a folder with class tars, class folders or both",
    )  # fmt: skip
    imagenet.add_argument(
        "--val-tar", "--val", type=Path, metavar="PATH",
        help="ILSVRC2012_img_val.tar, or a folder with its images; with --devkit or --val-labels",
    )  # fmt: skip
    imagenet.add_argument("--devkit", type=Path, metavar="PATH", help="ILSVRC2012_devkit_t12.tar.gz, or its folder")
    imagenet.add_argument(
        "--val-labels", type=Path, metavar="FILE",
        help="a wnid per line in order of names, FILENAME WNID, FILENAME NUMBER (Caffe's val.txt), or Kaggle's CSV",
    )  # fmt: skip
    imagenet.add_argument("--kaggle", type=Path, metavar="PATH", help="Kaggle's download: the zip, or its folder")
    imagenet.add_argument("--shards", action="store_true", help="write shards (WebDataset tars) instead of folders")
    imagenet.add_argument("--partial", action="store_true", help="only warn if images or classes are missing")
    shards = commands.add_parser("shards", help="WebDataset tars from a set in any form: folders, shards, Parquet ...")
    folders = commands.add_parser("folders", help="image folders from a set in any form")
    for maker in (shards, folders):
        maker.add_argument("source", type=Path, metavar="FROM")
        maker.add_argument("folder", type=Path, metavar="TO")
    for maker in (imagenet, shards):
        maker.add_argument("--shard-mb", type=int, default=256, metavar="MB", help="size of a shard")
        maker.add_argument("--decoded", action="store_true", help="keep pixels: large, and read by few cores")
        maker.add_argument(
            "--fraction", type=float, default=1.0, metavar="F", help="decode this part of the images only"
        )
    for maker in (imagenet, shards, folders):
        maker.add_argument(
            "--short-side", type=int, metavar="N", help="make training images smaller whose shorter side is longer"
        )
        maker.add_argument("--quality", type=int, default=90, metavar="Q", help="of those, as JPEG")
        maker.add_argument(
            "--shrink-val", action="store_true", help="make (or decode) validation images too: errors change by it"
        )
        _processes(maker)
    audit = commands.add_parser("audit", help="decode every image of a data set; training leaves out what cannot be")
    audit.add_argument("folder", type=Path, metavar="DIR")
    _processes(audit)
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    return _run(args)


def _processes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--processes", type=int, metavar="N", help="how many work at once (default: one per core)")


def _run(args: argparse.Namespace) -> int:
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
