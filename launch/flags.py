"""Flags that training and evaluation share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from senet.data.source import Source


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
