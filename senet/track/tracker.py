"""What every tracker has in common. Records are flat mappings of one spelling.

Every record has `kind` (train, val, event), `epoch` (counted from 1), `step` (done since the run began) and `seconds`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from senet.system.fan_out import fan_out
from senet.system.run_folder import RunFolder

if TYPE_CHECKING:
    from PIL.Image import Image

Record = Mapping[str, Any]
METHODS = ("log", "rewind", "begin", "advance", "expect", "say", "finish", "close")
T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """What a tracker is made from, at each start of a run."""

    folder: RunFolder
    name: str  # tells the runs of one config apart
    config: dict[str, Any]
    resume_step: int | None  # a resumed run logs again what came after it; None: a new run
    group: str = ""  # the same for runs that differ in their seeds alone
    labels: Mapping[str, Any] = field(default_factory=dict)  # run_name, run_group, run_tags, run_notes by flags
    facts: Mapping[str, Any] = field(default_factory=dict)  # of this start: command, flags, ranks, GPU, commit, ...
    log_checkpoints: bool = False  # the best checkpoint is to be kept with the records, once the run is complete


@dataclass(frozen=True)
class Stage:
    """A part of a run that takes a while. `epoch` is counted from 1; of `total` units `done` are done already."""

    what: Literal["epoch", "validation"]
    epoch: int
    epochs: int
    done: int
    total: int


@dataclass(frozen=True)
class Table:
    """Rows of plain values under the names of their columns."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Results:
    """What the last validation of a run says of the images, at the position of its record."""

    position: Record  # epoch, step, seconds
    classes: Table  # a row a class
    confusion: Table  # class, what it was taken for, images
    matrix: bool  # whether that has all pairs of classes, and not only the most frequent confusions
    examples: Table  # a row an image, the first column has paths of PNG files
    pictures: Sequence[Image]  # what those files hold


class Tracker:
    """A destination of a run's records. It does nothing with what it has no method of its own for."""

    def log(self, record: Record) -> None:
        """Keep, send or show a record."""

    def rewind(self, step: int) -> None:
        """The run has gone back to `step` and will log again what came after; only the events of that time stay."""

    def begin(self, stage: Stage) -> None:
        """Show that an epoch's training, or its validation, begins or goes on."""

    def advance(self, done: int) -> None:
        """Show how much of it is done: steps, or images validated."""

    def expect(self, seconds: float | None) -> None:
        """Show the seconds that are left of the whole run, if they are known."""

    def say(self, text: str) -> None:
        """Show a message to a person."""

    def finish(self, results: Results) -> None:
        """Keep, send or show what the last validation says, once, after its record."""

    def close(self, ok: bool) -> None:
        """End, with the run complete (`ok`) or not."""


class Dispensable(Tracker):
    """Passes everything on to a tracker until its disk fails. That ends the tracker, and not the run."""

    def __init__(self, name: str, make: Callable[[], Tracker]) -> None:
        self._name, self._tracker = name, Tracker()
        for method in METHODS:
            setattr(self, method, partial(self._call, method))
        self._tracker = self._try(make) or self._tracker

    def _call(self, method: str, *arguments: object) -> None:
        self._try(lambda: getattr(self._tracker, method)(*arguments))

    def _try(self, act: Callable[[], T]) -> T | None:
        try:
            return act()
        except OSError as error:
            self._tracker = Tracker()
            log.warning("%s: off from here on: %s", self._name, error)
        return None


class Trackers(Tracker):
    """Passes everything on to several trackers, in their order; the last one is closed first."""

    def __init__(self, *trackers: Tracker) -> None:
        for method in METHODS:
            setattr(self, method, fan_out(trackers[::-1] if method == "close" else trackers, method))
