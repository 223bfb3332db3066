"""Measurements, each beside a peer or a bare baseline in the same run, with medians and ranges.

python -m launch.bench train                               whole trainings: ours beside timm's and torchvision's
python -m launch.bench loader                              decoding: DALI, torchvision and our loaders on the same JPEGs
python -m launch.bench net [CONFIG ...]                    whole nets: images/s, what SE costs, roofline, others' loops
python -m launch.bench step [CONFIG]                       what our loop adds to a bare one
python -m launch.bench save                                how long a checkpoint holds training up, beside a bare copy
python -m launch.bench gpu --out DIR [--data CIFAR]        everything that a GPU can show, in one call; again to go on

Several GPUs: torchrun ... -m launch.doctor --speed. senet/bench/README.md describes them and what was measured.
"""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import asdict
from pathlib import Path

from launch import guard
from launch.flags import Parser

COMMANDS = ("train", "loader", "net", "step", "save", "gpu")


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    parser = Parser("launch.bench", __doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="{" + ",".join(COMMANDS) + "}")
    for name in COMMANDS:
        command = commands.add_parser(name)
        if words[:1] != [name]:
            continue  # to answer at once: most of them import torch
        module = importlib.import_module(f"senet.bench.{name}")
        command.description = module.__doc__
        module.add_flags(command)
        command.add_argument("--json", type=Path, metavar="FILE", help="also write the rows; - prints nothing else")
        command.add_argument("--png", type=Path, metavar="FILE", help="also draw them")
    args = parser.parse_args(words)
    for file in (args.json, args.png):  # before what takes minutes
        if file is not None and not file.absolute().parent.is_dir():
            parser.error(f"{file}: name a file in a folder that exists")

    from senet.bench import rows

    only_json = str(args.json) == "-"
    found = rows.last(module.run(args))
    if not only_json:
        print(getattr(module, "show", rows.show)(found))
    if args.json:
        text = json.dumps([asdict(row) for row in found], indent=None if only_json else 1)
        print(text) if only_json else args.json.write_text(text + "\n")
    if args.png:
        rows.draw(found, (module.__doc__ or "").partition(":")[0], args.png)
    return 0


if __name__ == "__main__":
    guard(main)
