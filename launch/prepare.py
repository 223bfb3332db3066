"""Bring a data set into the form that training reads.

    python -m launch.prepare demo runs/demo
    python -m launch.prepare cifar10 data/cifar10 [--archive cifar-10-python.tar.gz]

A second run reuses what the first one made; an interrupted one is finished by running it again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from launch import guard


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="launch.prepare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="draw a small data set: ten classes of shapes and textures, in ImageNet's layout")
    demo.add_argument("folder", type=Path, metavar="DIR")
    demo.add_argument("--train", type=int, default=2000, metavar="N", help="training images (default 2000)")
    demo.add_argument("--val", type=int, default=500, metavar="N", help="validation images (default 500)")
    demo.add_argument("--seed", type=int, default=0, help="other seed, other pictures (default 0)")
    for name in ("cifar10", "cifar100"):
        cifar = commands.add_parser(name, help=f"unpack {name} from its published archive")
        cifar.add_argument("folder", type=Path, metavar="DIR")
        cifar.add_argument("--archive", type=Path, metavar="FILE", help="python or binary version, .tar.gz (default: download it)")
        cifar.add_argument("--no-checksum", action="store_true", help="do not compare the archive with its published MD5 sum")
    args = parser.parse_args(argv)

    if args.command == "demo":
        from senet.prepare.demo import Demo, prepare

        prepare(args.folder, Demo(args.train, args.val, args.seed))
    else:
        from senet.prepare import cifar as archives

        print(archives.prepare(args.command, args.folder, args.archive, checksum=not args.no_checksum))
    return 0


if __name__ == "__main__":
    guard(main)
