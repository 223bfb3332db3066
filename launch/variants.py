"""List a config's variants as FILE:NAME, a line each, for job arrays.

python -m launch.variants configs/ablations/ratio.yaml
"""

from __future__ import annotations

from launch import guard
from launch.flags import Parser
from senet import config


def main(argv: list[str] | None = None) -> int:
    parser = Parser("launch.variants", __doc__)
    parser.add_argument("config", help="FILE.yaml, or the end of its path in configs/")
    for name in config.variants(parser.parse_args(argv).config):
        config.load(name)  # an array must not find out one by one
        print(name)
    return 0


if __name__ == "__main__":
    guard(main)
