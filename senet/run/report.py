"""What a run tells, and when: the words and figures that go to its trackers."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from senet import track
from senet.config import Config, to_dict
from senet.distributed import World
from senet.models import summary
from senet.run import provenance
from senet.run.checkpoint import BEST
from senet.run.choice import Choice
from senet.system.files import write_text


class Report:
    """The first rank's voice; the other ranks' says nothing."""

    def __init__(self, world: World, out: Path, started: float) -> None:
        self.world, self.out = world, out
        self.clock = Clock(started)
        self.tracker: track.Tracker = track.Silent()

    def open(self, config: Config, name: str, choice: str, resume_step: int | None) -> None:
        """Start the trackers; a resumed run drops what was logged after `resume_step`."""
        if self.world.is_main:
            self.tracker = track.build(
                self.out, choice=choice, name=name, config=to_dict(config), resume_step=resume_step
            )

    def keep(self, config: Config, flags: dict[str, Any]) -> None:
        """Write what defines the run into its folder: config, flags, versions, code, machine."""
        if not self.world.is_main:
            return
        commit, diff = provenance.code()
        facts = {"flags": flags, "versions": provenance.versions(), "commit": commit, **provenance.machine()}
        write_text(self.out / "config.yaml", yaml.safe_dump(to_dict(config), sort_keys=False))
        write_text(self.out / "run.json", json.dumps(facts, indent=1, default=str))
        if diff:
            write_text(self.out / "uncommitted.diff", diff)

    def announce(self, config: Config, name: str, images: tuple[int, int], choice: Choice, pixels: str) -> None:
        """`images` of training and validation."""
        world = self.world
        size = summary(config.net, config.data.classes, config.data.crop)
        ranks = f"{world.size} x {world.device.type}" + (
            f" {torch.cuda.get_device_name(world.device)}" if world.device.type == "cuda" else ""
        )
        shared = f" x {choice.accumulate} accumulated" if choice.accumulate > 1 else ""
        self.say(
            f"{name}: {size.parameters / 1e6:.2f} M parameters, {size.gmacs:.3g} GMACs; "
            f"{images[0]} training and {images[1]} validation images"
        )
        self.say(
            f"batch {config.batch} = {ranks} x {choice.micro_batch}{shared}; {config.precision}, "
            f"{choice.execution}; pixels: {pixels}"
        )

    def log(self, kind: str, epoch: int, step: int, **values: Any) -> None:
        """`epoch` counted from 1, `step` over the whole run."""
        self.tracker.log({"kind": kind, "epoch": epoch, "step": step, "seconds": self.clock.seconds(), **values})

    def say(self, text: str) -> None:
        self.tracker.say(text)


def done(config: Config, best: dict[str, float], folder: Path) -> str:
    """The last line of a run."""
    if not best:
        return "done: no epoch was trained"
    return (
        f"done: {config.epochs} epochs; best top-1 error {best['top1_error']:.2f} %, top-5 {best['top5_error']:.2f} % "
        f"on {best['images']} images after epoch {best['epoch']}: {folder / BEST}"
    )


class Clock:
    """Times of a run: since it began and of one logging interval."""

    def __init__(self, started: float) -> None:
        self.started = started
        self.last_lap = time.monotonic()
        self.waited = 0.0

    def seconds(self) -> float:
        return round(time.monotonic() - self.started, 3)

    def lap(self, images: int, waited: float) -> tuple[float, float]:
        """Images/s and the share of time spent waiting for data since the last lap; `waited` is the loader's running
        total.
        """
        now = time.monotonic()
        passed, self.last_lap = max(now - self.last_lap, 1e-9), now
        share, self.waited = (waited - self.waited) / passed, waited
        return round(images / passed, 2), round(min(share, 1.0), 4)
