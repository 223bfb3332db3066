"""What a run says and records: the words and figures that go to its trackers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch

from senet import track
from senet.config import Config, to_dict
from senet.distributed import World
from senet.models import summary
from senet.run.flags import Flags, labels
from senet.run.step_plan import StepPlan
from senet.run.voice import speaking
from senet.system.run_folder import RunFolder
from senet.track.jsonl import last_seconds
from senet.track.tracker import Results

log = logging.getLogger(__name__)


class Report:
    """The trackers of the first rank, and the times in their records. On other ranks nothing is recorded.

    From the beginning to `close` it is the library's voice: see `senet.run.voice`.
    """

    def __init__(self, world: World, folder: RunFolder, names: str) -> None:
        """`names` of trackers, as --track has them."""
        self.world, self.folder = world, folder
        self.clock = Clock()
        self.terminal = track.Terminal()
        self.tracker = track.Tracker()
        self._context = ExitStack()
        self.voice = self._context.enter_context(speaking(world, self.terminal.say))
        self._chosen, self._why = track.choose(names) if world.is_main else ([], [])

    def open(self, config: Config, flags: Flags, facts: Mapping[str, Any], resume_step: int | None) -> None:
        """Start the trackers, with `facts` of this start; a resumed run drops what was logged after `resume_step`."""
        for sentence in self._why:
            log.info(sentence)
        if self.world.is_main:
            group = " ".join([flags.name, *(word for word in flags.overrides if not word.startswith("seed="))])
            name, settings = f"{group} seed={config.seed}", to_dict(config)
            checkpoints = flags.log_checkpoints
            start = track.Start(self.folder, name, settings, resume_step, group, labels(flags), facts, checkpoints)
            if checkpoints and track.NAMED["wandb"] not in self._chosen:
                log.warning("--log-checkpoints has no effect: W&B is off")
            self.tracker = track.build(start, self.terminal, self._chosen)
            self.clock.go_on_from(last_seconds(self.folder.log))

    @property
    def wants_results(self) -> bool:
        """Whether a tracker of this rank makes use of `finish`."""
        return bool(self._chosen)

    def finish(self, make: Callable[[], Results]) -> None:
        """Give the trackers what the last validation says. What fails in here costs a warning and nothing else."""
        if self.world.is_main:
            try:
                self.tracker.finish(make())
            except Exception as error:
                log.warning("trackers get no tables and examples: %s: %s", type(error).__name__, error)

    def close(self, ok: bool) -> None:
        """End the trackers, with the run complete (`ok`) or not."""
        self.tracker.close(ok)
        self._context.close()

    def announce(
        self, config: Config, name: str, images: tuple[int, int], plan: StepPlan, pixels: str, disk: int
    ) -> None:
        """Say what is about to happen; `images` of training and validation, bytes of `disk` for the checkpoints."""
        world = self.world
        size = summary(config.net, config.data.classes, config.data.crop)
        gpu = f" {torch.cuda.get_device_name(world.device)}" if world.device.type == "cuda" else ""
        accumulated = f" x {plan.accumulation_steps} accumulated" if plan.accumulation_steps > 1 else ""
        counted = f"{images[0]} training and {images[1]} validation images"
        log.info(f"{name}: {size.parameters / 1e6:.2f} M parameters, {size.gmacs:.3g} GMACs; {counted}")
        batch = f"{config.batch} = {world.size} x {world.device.type}{gpu} x {plan.micro_batch}{accumulated}"
        log.info(f"batch {batch}; {config.precision}, {plan.execution}; pixels: {pixels}")
        log.info(f"checkpoints take up to {max(1, disk >> 20):,} MiB of {self.folder}")

    def record(self, kind: str, epoch: int, step: int, **values: Any) -> None:
        """Give a record to the trackers; `epoch` counted from 1, `step` over the whole run."""
        self.tracker.log({"kind": kind, "epoch": epoch, "step": step, "seconds": self.clock.seconds(), **values})


class Clock:
    """The times of a run: since it began, of one logging interval, and how long it will still take."""

    def __init__(self) -> None:
        self.started = self._began = time.monotonic()
        self._waited, self._steps = 0.0, 0
        self._step_seconds: float | None = None  # in the last interval

    def seconds(self) -> float:
        """Return the seconds that the run has taken, over all its starts."""
        return round(time.monotonic() - self.started, 3)

    def go_on_from(self, seconds: float) -> None:
        """Count what earlier starts have taken."""
        self.started -= seconds

    def begin_interval(self, step: int, waited: float) -> None:
        """Begin an interval after a step of the run; `waited` is the loader's running total of seconds waited for."""
        self._began, self._steps, self._waited = time.monotonic(), step, waited

    def leave_out(self, seconds: float) -> None:
        """Take something that is no training, such as saving, out of the interval."""
        self._began += seconds

    def end_interval(self, step: int, batch: int, waited: float) -> dict[str, float]:
        """Return images/s over all ranks and the share of time waited for data; nothing if no step was made."""
        passed, steps, wait = time.monotonic() - self._began, step - self._steps, waited - self._waited
        self.begin_interval(step, waited)
        if steps <= 0 or passed <= 0:
            return {}
        self._step_seconds = passed / steps
        return {"images_per_second": round(steps * batch / passed, 2), "data_wait": round(min(wait / passed, 1.0), 4)}

    def pace(self, step: int) -> None:
        """Take the time of a step from those of the interval so far, up to a step of the run."""
        self._step_seconds = (time.monotonic() - self._began) / max(step - self._steps, 1)

    def left(self, steps: int, validations: int, validation_seconds: float | None) -> float | None:
        """Return the seconds that the rest of the run will take; None as long as nobody knows."""
        if self._step_seconds is None:
            return None
        return steps * self._step_seconds + validations * (validation_seconds or 0.0)
