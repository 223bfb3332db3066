"""Measurements, each a ratio to a peer or a bare baseline in the same run.

python -m senet.bench loader [--data DIR] [--threads 1 2] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from senet.bench import loader


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="senet.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("loader", help="DALI, torchvision and this project's loaders on the same JPEGs")
    loader.add_flags(command)
    command.add_argument("--json", type=Path, metavar="FILE", help="also write what was measured; - prints it")
    args = parser.parse_args(argv)
    result = loader.main(args)
    if str(args.json) == "-":
        print(json.dumps(result))
    elif args.json:
        args.json.write_text(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
