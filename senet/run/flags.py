"""The flags of a training, each defined once: its name, default, help and checks. Imports no torch.

Everything that decides what is trained is in the config. Flags are the circumstances: where data are read and results
are written, what to do when something goes wrong. Some can still change figures: `--backend` decodes other pixels,
how the net is computed decides last bits, and with batch normalisation so many images as are computed at once
(`--largest-batch`) give other statistics. What differs from the start before is warned of.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from senet.track import NAMED

if TYPE_CHECKING:
    from senet.data.source import Source


def flag(default: Any, description: str, group: str = "", **more: Any) -> Any:
    """Define a flag. `more` goes to `add_argument`, but for `limit`: positive or not negative, as it must be."""
    return dataclasses.field(default=default, metadata={"help": description, "group": group, **more})


def largest(text: str) -> int | str:
    """Read the value of --largest-batch. Raises ArgumentTypeError."""
    if text != "auto" and not (text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of images nor auto")
    return text if text == "auto" else int(text)


def trackers(text: str) -> str:
    """Read the value of --track. Raises ArgumentTypeError."""
    if text not in ("auto", "none") and (unknown := [name for name in text.split(",") if name not in NAMED]):
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of auto, none, {', '.join(NAMED)}")
    return text


def tags(text: str) -> tuple[str, ...]:
    """Read the value of --run-tags."""
    return tuple(tag.strip() for tag in text.split(",") if tag.strip())


SHOWN = "W&B (default: what wandb's own variables say, as WANDB_NAME)"
LIFE = "checkpoints and trouble"
HOW = "how the net is computed: speed, memory, last bits; a resumed run computes as before"
SWITCH = argparse.BooleanOptionalAction


@dataclass(frozen=True)
class Flags:
    """The circumstances of a run."""

    out: Path
    name: str  # of the config
    overrides: tuple[str, ...]
    source: Source
    device: str
    init: str | None = flag(
        None,
        "weights that a new run begins with: a file of any library, a checkpoint, a run folder or timm:NAME",
        metavar="WEIGHTS",
    )
    track: str = flag(
        "auto", f"none, auto (W&B if a login or WANDB_MODE is there), or names of {','.join(NAMED)}", type=trackers
    )
    log_every: int = flag(50, "steps between log records", metavar="STEPS", limit="positive")
    accept_changes: bool = flag(False, "go on in --out with other settings than before (not another net)")
    deterministic: bool = flag(False, "on a GPU: cuDNN's deterministic algorithms, at some cost in speed")
    save_minutes: float = flag(15.0, "save within an epoch, too, every M minutes", LIFE, metavar="M", limit="positive")
    keep: int = flag(2, "newest checkpoints kept, besides the best", LIFE, metavar="K", limit="positive")
    keep_every: int = flag(0, "also keep the checkpoint of every N-th epoch", LIFE, metavar="N", limit="not negative")
    keep_hours: float = flag(0.0, "also keep one checkpoint every H hours", LIFE, metavar="H", limit="not negative")
    max_skips: int = flag(
        10, "steps in a row with gradients not finite before going back", LIFE, metavar="N", limit="positive"
    )
    hang_minutes: float = flag(
        5.0, "a step that takes longer ends the run, for torchrun to restart it", LIFE, metavar="M", limit="positive"
    )
    largest_batch: int | Literal["auto"] | None = flag(
        None,
        "most images a rank holds at once, the rest is accumulated; auto tries (default: its part of the batch)",
        HOW,
        metavar="N|auto",
        type=largest,
    )
    layout: str | None = flag(
        None, "of images in memory (default: channels_last)", HOW, choices=["channels_last", "contiguous"]
    )
    tail: str | None = flag(
        None,
        "the end of a block (BN, SE, sum, ReLU): layer by layer (default), or fused into few passes over memory",
        HOW,
        choices=["plain", "analytic", "triton"],
    )
    compile: bool | None = flag(None, "torch.compile, block by block (default: no)", HOW, action=SWITCH)
    graph: bool | None = flag(None, "a step as one CUDA graph, for small nets (default: no)", HOW, action=SWITCH)
    tune: bool = flag(False, "time all of that for some seconds on this machine, and take the fastest", HOW)
    log_checkpoints: bool = flag(
        False,
        "keep best.pt there as an artifact of type model, once the run is done; its end waits for that two minutes "
        "at most, and what is not sent by then, or of an offline run, `wandb sync` sends later",
        SHOWN,
    )
    run_name: str | None = flag(None, "default: CONFIG, overrides, seed", SHOWN, metavar="NAME")
    run_group: str | None = flag(None, "default: CONFIG and overrides but for the seed", SHOWN, metavar="NAME")
    run_tags: tuple[str, ...] | None = flag(None, "separated by commas", SHOWN, metavar="TAG,...", type=tags)
    run_notes: str | None = flag(None, "any text", SHOWN, metavar="TEXT")


def add(parser: argparse.ArgumentParser, only: str | None = None) -> None:
    """Add the flags that are defined above to a parser, or `only` those of one group."""
    groups: dict[str, Any] = {"": parser}
    for field in _defined():
        settings = dict(field.metadata)
        group, limit = settings.pop("group"), settings.pop("limit", "")
        if only not in (None, group):
            continue
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        if field.default is False:
            settings["action"] = "store_true"
        elif field.default is not None:
            settings.setdefault("type", limited(type(field.default), limit) if limit else type(field.default))
        groups[group].add_argument(f"--{field.name.replace('_', '-')}", default=field.default, **settings)


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse flags that do not go together. Exits with code 2."""
    if args.tune and (asked := execution(args)):
        parser.error(f"--tune chooses --{', --'.join(asked)} itself; give either")


def execution(flags: argparse.Namespace | Flags) -> dict[str, Any]:
    """Return the settings of Execution that flags name."""
    names = ("layout", "tail", "compile", "graph")
    return {name: value for name in names if (value := getattr(flags, name)) is not None}


def labels(flags: Flags) -> dict[str, Any]:
    """Return what flags say about the run's page in W&B, by wandb's names of these settings."""
    names = ("run_name", "run_group", "run_tags", "run_notes")
    return {name: value for name in names if (value := getattr(flags, name)) is not None}


def collect(args: argparse.Namespace, **more: Any) -> Flags:
    """Return the flags that were parsed; `more` are the fields that are no flag of their own."""
    return Flags(**{field.name: getattr(args, field.name) for field in _defined()}, **more)


def _defined() -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(Flags) if field.metadata]


def limited(kind: type, limit: str, most: float = math.inf) -> Any:
    """Return a function that reads a number of a `kind`, for `type` of a flag. `limit`: positive or not negative."""

    def read(text: str) -> Any:
        value = kind(text)
        if not (value > 0 or (value == 0 and limit == "not negative")):  # NaN is neither
            raise argparse.ArgumentTypeError("must be positive" if limit == "positive" else "must not be negative")
        if value > most:
            raise argparse.ArgumentTypeError(f"must not be over {most:g}")
        return value

    read.__name__ = kind.__name__  # argparse names it when the text is no number
    return read
