"""Flags that training and evaluation share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from senet.config import find
from senet.errors import UsageError
from senet.run.flags import limited

if TYPE_CHECKING:
    from senet.data.source import Source
    from senet.distributed import World
    from senet.run.load import Trained
    from senet.run.voice import Voice


class Help(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of a program's description, and ends what is said of a flag with its default, if it has one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        said, usual = action.help or "", action.default
        has_default = action.option_strings and usual not in (None, argparse.SUPPRESS, []) and usual is not False
        return f"{said} (default: %(default)s)".strip() if has_default and "default" not in said else said


class Parser(argparse.ArgumentParser):
    """Describes a program by the text at its head, and says what is wrong with its arguments in one line."""

    def __init__(self, prog: str | None = None, description: str | None = None, **more: Any) -> None:
        super().__init__(prog, description=description, formatter_class=Help, **more)

    def error(self, message: str) -> NoReturn:
        """Raise UsageError, which one rank says for all."""
        raise UsageError(f"{message}; {self.prog} --help lists what there is")


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


def add_data_flags(parser: argparse.ArgumentParser, again: bool = False) -> None:
    """Add what says where images are and how they are decoded, and on which device all is computed. `again`: they are
    looked at more than once.
    """
    positive, not_negative = limited(int, "positive"), limited(int, "not negative")
    add = parser.add_argument_group("images").add_argument
    layouts = (
        "train/CLASS/*, val/CLASS/*; shards train/*.tar, val/*.tar; CIFAR's unpacked archive; senet/data/README.md"
    )
    add("--data", type=Path, metavar="DIR", help=f"data set: {layouts} lists all forms")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: a GPU if there is one")
    backends = "what decodes image files; auto: DALI if it is installed"
    add("--backend", choices=["auto", "dali", "pillow"], default="auto", help=backends)
    add("--decode", choices=["auto", "gpu", "cpu"], default="auto", help="DALI: where; auto: on a GPU if there is one")
    share = "DALI on a GPU: JPEGs for its hardware decoder, of 1"
    add("--hw-decoder-load", type=limited(float, "not negative", most=1), default=0.65, metavar="SHARE", help=share)
    if again:
        cache = "ram: decode images once, into memory that all ranks of a node share; as they are, at their full size"
        add("--cache", choices=["ram"], help=cache)
    workers = "decoding threads or processes of a rank (default: its share of the cores)"
    add("--workers", type=positive, metavar="N", help=workers)
    add("--val-batch", type=positive, default=128, metavar="N", help="images validated at once")
    bad = "undecodable images to put up with before stopping (default: 100, or one in a thousand)"
    add("--max-bad", type=not_negative, metavar="N", help=bad)
    add("--no-checksum", action="store_true", help="CIFAR: do not verify the files")


def source(args: argparse.Namespace) -> Source:
    """Where images come from, as the flags say."""
    from senet.data.source import Source

    named = ("backend", "decode", "hw_decoder_load", "workers", "val_batch", "max_bad")
    given = {name: getattr(args, name) for name in named} | {"cache": getattr(args, "cache", None)}
    return Source(root=args.data, checksum=not args.no_checksum, **given)


def output(*endings: str) -> Callable[[str], Path]:
    """Return a function that reads the name of a file to be written, for `type` of a flag."""

    def read(text: str) -> Path:
        if (path := Path(text)).suffix in endings and path.absolute().parent.is_dir():
            return path
        known = " or ".join(endings)
        raise argparse.ArgumentTypeError(f"{text}: name a file in a folder that exists, ending in {known}")

    return read


@contextmanager
def world_of(args: argparse.Namespace) -> Iterator[tuple[World, Voice]]:
    """Join the world of the ranks, on the device named; the library speaks to standard error, once for all."""
    from senet import distributed
    from senet.run.voice import speaking
    from senet.track import Terminal

    with distributed.start(args.device) as world, speaking(world, Terminal().say) as voice:
        yield world, voice


def add_net_flags(parser: argparse.ArgumentParser, nargs: str | None = None) -> None:
    """Add what names a trained net, `what`; several with `nargs`."""
    group = parser.add_argument_group("net")
    parser.add_argument("what", metavar="CHECKPOINT|RUN|WEIGHTS|timm:NAME", nargs=nargs)
    group.add_argument("--weights", type=Path, metavar="FILE", help="timm:NAME: its weights, instead of a download")
    group.add_argument("--unverified", action="store_true", help="take a checkpoint without a checksum that fits")
    either, average = group.add_mutually_exclusive_group(), "a run that keeps an average of the weights: "
    either.add_argument("--ema", action="store_true", default=None, help=average + "the average (used by default)")
    either.add_argument("--raw", action="store_false", default=None, dest="ema", help=average + "the others")


def net(args: argparse.Namespace, what: str | None = None) -> Trained:
    """Return the trained net that the flags name. Raises UsageError."""
    from senet.run.load import load

    return load(what or args.what, args.weights, not args.unverified, args.ema)


def run_name(config: str) -> str:
    """`imagenet/se_resnet50` for configs/imagenet/se_resnet50.yaml; a variant follows a dash."""
    path, _, variant = config.partition(".yaml:")
    parts = list(Path(path.removesuffix(".yaml")).parts)
    if "configs" in parts:
        parts = parts[parts.index("configs") + 1 :]
    return "/".join(parts[-2:]) + (f"-{variant}" if variant else "")
