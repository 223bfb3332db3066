"""Where the records of a run go: JSON lines and the terminal always, W&B and TensorBoard if wanted.

Another tracker is a class derived from `Tracker` in a file of its own, and a line in `NAMED`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

from senet.track.jsonl import JsonLines
from senet.track.tensorboard import TensorBoard
from senet.track.terminal import Terminal
from senet.track.tracker import Dispensable, Start, Tracker, Trackers
from senet.track.wandb import WeightsAndBiases

__all__ = ["NAMED", "Start", "Terminal", "Tracker", "Trackers", "build", "choose"]


class NamedTracker(Protocol):
    """The class of a tracker that is used if it is asked for, or by itself."""

    def __call__(self, start: Start) -> Tracker: ...

    def decide(self, asked: bool) -> tuple[bool, str]:
        """Return whether to use it (`asked`: a flag named it) and a sentence on why. Raises UsageError."""


NAMED: dict[str, NamedTracker] = {"wandb": WeightsAndBiases, "tensorboard": TensorBoard}


def choose(track: str) -> tuple[list[NamedTracker], list[str]]:
    """Return the trackers that names (auto, none, ...) mean, and sentences that say why. Raises UsageError."""
    named = [] if track in ("auto", "none") else track.split(",")
    offered = {"auto": list(NAMED), "none": []}.get(track, named)
    decisions = [(NAMED[name], *NAMED[name].decide(asked=name in named)) for name in offered]
    chosen = [tracker for tracker, use, _ in decisions if use]
    return chosen, [why for *_, why in decisions if why] or ["no tracker but log.jsonl (--track none)"]


def build(start: Start, terminal: Terminal, chosen: Sequence[NamedTracker]) -> Tracker:
    """Return the trackers of a run as one. A resumed run drops what was logged after `start.resume_step`."""
    others = (Dispensable(name, partial(tracker, start)) for name, tracker in NAMED.items() if tracker in chosen)
    return Trackers(JsonLines(start.folder.log, start.resume_step), terminal, *others)
