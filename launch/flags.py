"""Flags that training and evaluation share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from senet.config import find

if TYPE_CHECKING:
    from senet.data.source import Source


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add the config and its overrides, which `parse` reads."""
    parser.add_argument(
        "config", nargs="?", help="FILE.yaml, FILE.yaml:VARIANT, or the end of its path in configs/, as se_resnet50"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config, as in optim.lr=0.3")


def parse_config(parser: argparse.ArgumentParser, argv: list[str] | None, required: bool = True) -> argparse.Namespace:
    """Parse arguments; `config` becomes the path of a file that exists. Exits with code 2 if it is missing."""
    args = parser.parse_intermixed_args(argv)
    if args.config is None and not args.overrides and not required:
        return args
    if args.config is None or ("=" in args.config and not Path(args.config).exists()):
        parser.error("which config? Give a file such as configs/imagenet/se_resnet50.yaml before any key=value")
    path, variant = find(args.config)
    args.config = f"{path}:{variant}" if variant else str(path)
    return args


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="data set: train/CLASS/*, val/CLASS/*; shards train/*.tar, val/*.tar; or CIFAR's extracted archive",
    )
    parser.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: a GPU where there is one"
    )
    parser.add_argument(
        "--backend",
        choices=["auto", "dali", "pillow"],
        default="auto",
        help="decoder of image sets (default: DALI if it is installed)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=None,
        metavar="N",
        help="decoding threads or processes a rank (default: its cores)",
    )
    parser.add_argument(
        "--val-batch", type=int, default=128, metavar="N", help="images validated at once (default 128)"
    )
    parser.add_argument(
        "--max-bad",
        type=int,
        metavar="N",
        help="undecodable images to put up with before stopping (default 100, or one in a thousand)",
    )
    parser.add_argument("--no-checksum", action="store_true", help="CIFAR: do not verify the files")


def add_execution_flags(parser: argparse.ArgumentParser) -> None:
    """Add how a net is computed, which `execution` reads."""
    group = parser.add_argument_group(
        "how the net is computed", "speed and the last bits of a result; a resumed run computes as before"
    )
    add = group.add_argument
    add(
        "--largest-batch",
        type=largest_batch,
        metavar="N|auto",
        help="most images a rank holds at once, the rest is accumulated; auto tries (default: its part of the batch)",
    )
    add("--layout", choices=["channels_last", "contiguous"], help="of images in memory (default: channels_last)")
    add(
        "--tail",
        choices=["plain", "analytic", "triton"],
        help="the end of a block (BN, SE, sum, ReLU): layer by layer (default), or fused into few passes over memory",
    )
    add("--compile", action=argparse.BooleanOptionalAction, help="torch.compile, block by block (default: no)")
    add("--graph", action=argparse.BooleanOptionalAction, help="a step as one CUDA graph, for small nets (default: no)")
    add("--tune", action="store_true", help="time all of that for some seconds on this machine, and take the fastest")


def execution(parser: argparse.ArgumentParser, args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of Execution that flags name. Exits with code 2 if --tune is to choose them."""
    names = ("layout", "tail", "compile", "graph")
    asked = {name: value for name in names if (value := getattr(args, name)) is not None}
    if args.tune and asked:
        parser.error(f"--tune chooses --{', --'.join(asked)} itself; give either")
    return asked


def largest_batch(text: str) -> int | str:
    """Read --largest-batch."""
    if text == "auto" or (text.isdigit() and int(text)):
        return text if text == "auto" else int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is neither a number of images nor auto")


def source(args: argparse.Namespace) -> Source:
    """Where images come from, as the flags say."""
    from senet.data.source import Source

    return Source(
        root=args.data,
        backend=args.backend,
        workers=args.workers,
        val_batch=args.val_batch,
        max_bad=args.max_bad,
        checksum=not args.no_checksum,
    )


def run_name(config: str) -> str:
    """`imagenet/se_resnet50` for configs/imagenet/se_resnet50.yaml; a variant follows a dash."""
    path, _, variant = config.partition(".yaml:")
    parts = list(Path(path.removesuffix(".yaml")).parts)
    if "configs" in parts:
        parts = parts[parts.index("configs") + 1 :]
    return "/".join(parts[-2:]) + (f"-{variant}" if variant else "")
