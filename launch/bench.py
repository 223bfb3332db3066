"""Measurements, each a ratio to a peer or a bare baseline in the same run.

python -m launch.bench loader                              decoding: DALI, torchvision and our loaders on the same JPEGs
python -m launch.bench net [CONFIG ...]       whole nets: images/s, what SE costs, roofline, timm's and NVIDIA's loops
python -m launch.bench step [CONFIG]                       what our loop adds to a bare one
python -m launch.bench save                                how long a checkpoint holds training up, beside a bare copy
python -m launch.bench scaling [CONFIG]                    one rank and two: gradients, parameters, collectives
python -m launch.bench gpu --out DIR [--data CIFAR]        everything that a GPU can show, in one call; again to go on
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

from senet.errors import RunError, UsageError

COMMANDS = {
    "loader": "decoding: DALI, torchvision and our loaders on the same JPEGs",
    "net": "whole nets: images/s, what SE costs, roofline, timm's and NVIDIA's loops",
    "step": "what our loop adds to a bare one",
    "save": "how long a checkpoint holds training up, beside a bare copy",
    "scaling": "one rank and two: gradients, parameters, collectives",
    "gpu": "everything that a GPU can show, in one call; again to go on",
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="launch.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    modules: dict[str, ModuleType] = {}
    for name, what in COMMANDS.items():
        modules[name] = importlib.import_module(f"senet.bench.{name}")
        command = commands.add_parser(name, help=what, description=modules[name].__doc__)
        modules[name].add_flags(command)
        command.add_argument("--json", type=Path, metavar="FILE", help="also write what was measured; - prints it")
    args = parser.parse_args(argv)
    try:
        result = modules[args.command].main(args)
    except (UsageError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    if str(args.json) == "-":
        print(json.dumps(result))
    elif args.json:
        args.json.write_text(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
