"""What goes wrong in a run without ending it at once: gradients that are not finite, slow ranks, undecodable images."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import astuple

from senet.data.loader import TrainLoader, ValLoader
from senet.errors import RunError
from senet.run.flags import Flags
from senet.run.state import State
from senet.system.files import write_text
from senet.system.run_folder import RunFolder
from senet.train.stragglers import StepTimer, StragglerDetector, Times

REWINDS = 3  # before giving up
DUMPED = 20  # steps whose images are named

log = logging.getLogger(__name__)


class Trouble:
    """Finds it, names it in the log, and gives up if going on makes no sense. All ranks call its methods together."""

    def __init__(
        self,
        flags: Flags,
        state: State,
        loaders: tuple[TrainLoader, ValLoader],
        hosts: list[str],
        timer: StepTimer | None,
        record: Callable[..., object],
    ) -> None:
        """`timer`: of this rank's steps, if there are several ranks; `record` is given the fields of events."""
        self.folder, self.max_skips, self.state = RunFolder(flags.out), flags.max_skips, state
        self.trainer, self.world = state.trainer, state.trainer.world
        self.loader, self.val = loaders
        self.timer, self.stragglers = timer, StragglerDetector(hosts)
        self.record = record
        self.rewinds = 0
        self.bad_counts: list[float] = [0] * self.world.size  # undecodable images that each rank has met

    def look_at_ranks(self) -> None:
        """Name the ranks that hold up the others, or no longer do, and undecodable images. Unless one was found, a few
        numbers of each rank say it all. Raises RunError as `look_at_images`.
        """
        times = astuple(self.timer.read()) if self.timer else ()
        told = self.world.all_gather_object([len({**self.loader.bad, **self.val.bad}), *times])
        if self.timer:
            for change in self.stragglers.compare([Times(int(steps), *seconds) for _, steps, *seconds in told]):
                self.record(**change)
        if (counts := [count for count, *_ in told]) != self.bad_counts:
            self.bad_counts = counts
            self.look_at_images()

    def look_at_images(self) -> None:
        """Name, once each, the images that any rank could not decode. Raises RunError, on all ranks, for too many."""
        bad = self.state.bad
        for of_rank in self.world.all_gather_object({**self.loader.bad, **self.val.bad}):
            for path, reason in of_rank.items():
                if path not in bad:
                    bad[path] = reason
                    self.record(undecodable=path, reason=reason)
        self.loader.bad.check(bad)

    def look_at_gradients(self) -> tuple[int, int] | None:
        """Name the steps that were left out because their gradients were not finite. If they are too many in a row,
        return the first and the last, which the run is to go back to before, and to leave out for good.

        Every rank sees the same, for gradients are those of the global batch. Raises RunError if going back does not
        help.
        """
        guard = self.trainer.guard
        steps, row = guard.nonfinite_steps(), guard.consecutive_skips
        # An overflow of fp16 lets the loss scale find its size; it is a fault if it goes on.
        if steps and (row >= self.max_skips or not self.trainer.scaler.is_enabled()):
            self._dump_images(steps)
            self.record(skipped=len(steps), first_skipped=steps[0] + 1, row=row, reason="gradients not finite")
            which = f"{len(steps)} steps from step {steps[0] + 1}"
            log.info(f"left out {which}: gradients not finite; images in {self.folder}/nonfinite-*")
        if row < self.max_skips:
            return None
        self.rewinds += 1
        if self.rewinds > REWINDS:
            remedy = f"lower optim.lr, use bf16 or fp32, or look at the images in {self.folder}/nonfinite-*.json"
            raise RunError(f"gradients not finite in {row} steps in a row, again after {REWINDS} rewinds; {remedy}")
        return self.state.global_step - row, self.state.global_step - 1

    def _dump_images(self, steps: list[int]) -> None:
        """Name the images of this rank in the first of the steps that were left out."""
        images = {step + 1: self.loader.names(step) for step in steps[:DUMPED]}
        file = self.folder.nonfinite(steps[0] + 1, self.world.rank)
        try:
            write_text(file, json.dumps({"epoch": self.state.epoch, "steps": steps, "images": images}, indent=1))
        except OSError as error:
            log.warning("%s: cannot be written: %s", file, error.strerror or error)
