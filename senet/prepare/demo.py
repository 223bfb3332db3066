"""The demo set: a small problem in ImageNet's layout, drawn from a seed, for a first run without any download."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from senet.data.philox import Ints
from senet.data.storage.index import Index, Names, Storage
from senet.errors import UsageError
from senet.prepare.drawing import CLASSES, jpeg
from senet.prepare.encoding import Encoding
from senet.prepare.folders import write_folders
from senet.prepare.plan import PLAN, is_complete, record

VERSION = 1  # of the drawings: raise it when the same seed gives other pictures


@dataclass(frozen=True)
class Demo:
    """What defines a set. Equal values give equal bytes, given the same PIL and numpy."""

    train: int = 2000
    val: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        for split in ("train", "val"):
            if getattr(self, split) < len(CLASSES):
                raise UsageError(f"--{split} {getattr(self, split)}: at least {len(CLASSES)}, one image a class")
        if self.seed < 0:
            raise UsageError(f"--seed {self.seed}: must not be negative")

    @property
    def plan(self) -> dict[str, Any]:
        return {"form": "demo", **asdict(self), "version": VERSION}


class Drawn(Storage):
    """Pictures that are drawn as they are read; `numbers` [n] in their split."""

    def read(self, image: int) -> bytes:
        # A generator per picture: neither order nor processes nor an interruption changes it.
        key = [self.stamp["seed"], self.root.name == "val", int(self.columns["numbers"][image])]
        return jpeg(self.names[image].partition("/")[0], np.random.default_rng(key))

    def sizes(self) -> Ints:
        return np.full(len(self.names), 8192, np.int64)  # about


def prepare(folder: Path, demo: Demo, processes: int | None = None) -> str:
    """Write `folder`/train/CLASS/*.JPEG and `folder`/val/CLASS/*.JPEG, on as many `processes` as there are cores by
    default; returns what was done, in a sentence.

    A set that is there is kept; one that was interrupted is completed. Raises UsageError if another set, or anything
    else, is in the folder.
    """
    what = f"{demo.train} + {demo.val} images of {len(CLASSES)} classes, seed {demo.seed}"
    try:
        if folder.exists() and any(folder.iterdir()) and not (folder / PLAN).exists():
            raise UsageError(f"{folder}: not empty and not a demo set; name another folder")
        pending = [split for split in ("train", "val") if not is_complete(folder, split, demo.plan)]
        for split in pending:
            record(folder, split, demo.plan)
            numbers = np.arange(getattr(demo, split))
            labels = numbers % len(CLASSES)
            names = Names.of(f"{CLASSES[n % len(CLASSES)]}/{split}_{n:06}.JPEG" for n in numbers)
            drawn = Drawn(folder / split, names, {"seed": demo.seed}, {"numbers": numbers})
            # A few are drawn sooner than processes start.
            few = 1 if len(labels) < 100 else processes
            write_folders(Index(drawn, labels, CLASSES).sorted(), folder, split, Encoding(), few)
            record(folder, split, demo.plan, complete=True)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written: {error.strerror or error}") from None
    return f"{folder}: demo set written: {what}" if pending else f"{folder}: the demo set is there already: {what}"
