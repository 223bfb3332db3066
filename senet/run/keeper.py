"""The checkpoints of a run: when one is written and under which names, and which one the run goes on from."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from senet.config import from_dict
from senet.errors import DiskError, UsageError
from senet.run import changes, checkpoint
from senet.run.checkpoint import Payload
from senet.run.flags import Flags
from senet.run.saver import Saver
from senet.run.state import State
from senet.system import seal
from senet.system.run_folder import RunFolder

log = logging.getLogger(__name__)


class Keeper:
    """Saves the state of a run and goes back to what was saved. All ranks take part; the first one reads and writes."""

    def __init__(
        self, folder: RunFolder, flags: Flags, state: State, images: tuple[str, str], pixels: Mapping[str, Any]
    ) -> None:
        """`images`: fingerprints of the training and the validation set; `pixels`: how the latter's are made."""
        self.folder, self.flags, self.state = folder.checkpoints, flags, state
        self.world = state.trainer.world
        self.images, self.pixels = images, dict(pixels)
        self.changed: list[str] = []  # settings that differ from those of the checkpoint
        self.saved_at = time.monotonic()
        self._saver = Saver(self.folder, flags.keep)  # which has nothing to do on other ranks
        self._timed_due = 0.0  # by the monotonic clock: when the next one is to stay for its time

    def start(self) -> None:
        """Begin to write: the folder is this run's."""
        if self.world.is_main:
            for rest in self.folder.temporaries():
                with contextlib.suppress(OSError):
                    rest.unlink()
            self._timed_due = time.monotonic() + 3600 * (self.flags.keep_hours - self.folder.hours_since_timed())

    @property
    def due(self) -> float:
        """Seconds until it is time to save, by this rank's clock; less than 0 if it is overdue."""
        return self.saved_at + 60 * self.flags.save_minutes - time.monotonic()

    def save(self, errors: Mapping[str, float]) -> None:
        """Write a checkpoint of the current position behind the training's back; `errors` of the epoch that it ends."""
        state, flags = self.state, self.flags
        payload = state.pack(images=self.images[0], val_images=self.images[1], pixels=self.pixels)
        if self.world.is_main:
            names = self._epoch_name() if errors else []
            if flags.keep_hours and time.monotonic() >= self._timed_due:
                names.append(self.folder.timed(state.global_step))
                self._timed_due = time.monotonic() + 3600 * flags.keep_hours
            self._saver.save(payload, errors, names)
        self.saved_at = time.monotonic()

    def news(self) -> list[str]:
        """Return what could not be written since the last call."""
        return self._saver.news()

    def finish(self) -> bool:
        """Wait until everything is on disk that gets there. Return, on all ranks, whether the current position did."""
        self._saver.finish()
        return bool(self.world.broadcast_object(self._saver.saved == (self.state.global_step, self.state.epoch)))

    def close(self) -> None:
        self._saver.close()

    def resume(self, before: int | None = None) -> bool:
        """Go back to the newest valid checkpoint, of a step `before` that one if given; return whether there is one.

        All ranks read the one that the first rank found: a shared folder may show them different newest files. Raises
        UsageError for a checkpoint of another net, other images, or settings that must not change.
        """
        self.finish()
        found: tuple[Path, Payload] | None = None
        refusal: Exception | None = None
        try:
            found = checkpoint.newest(self.folder, before) if self.world.is_main else None
        except (UsageError, DiskError) as error:
            refusal = error
        path, refusal = self.world.broadcast_object((found and found[0], refusal))
        if refusal is not None:
            raise refusal
        if path is None:
            return False
        try:
            payload = found[1] if found else checkpoint.read(path)
        except checkpoint.Invalid as error:
            raise DiskError(f"{path}: rank {self.world.rank} does not see it as rank 0 does: {error}") from None
        config = self.state.trainer.config
        self.changed = changes.check_same(from_dict(payload.config), config, path, self.flags.accept_changes)
        changes.check_pixels(payload.pixels, self.pixels)
        if not any(change.startswith("data.") for change in self.changed):
            changes.check_images((payload.images, payload.val_images), self.images, self.flags.source.root, path)
        self.state.restore(payload)
        if self.state.step and self.changed:
            changes.check_within_epoch(self.changed, path)
        if self.world.is_main:
            with contextlib.suppress(OSError):  # a full disk
                # A run that was killed may have got no further than to the first of them.
                for name in [self.folder.of_step(self.state.global_step), *self._epoch_name()]:
                    if not name.exists():
                        checkpoint.link(path, name)
            self._check_best()
        return True

    def _epoch_name(self) -> list[Path]:
        """Return the name under which a checkpoint at the current position stays as that of its epoch, if it does."""
        every, state = self.flags.keep_every, self.state
        at_end = state.epoch and not state.step
        return [self.folder.of_epoch(state.epoch)] if every and at_end and state.epoch % every == 0 else []

    def _check_best(self) -> None:
        """Put best.pt aside unless it is whole, of a step that the run has come to, and was the best on its images."""
        best, reason = self.folder.best, ""
        try:
            facts = seal.check(best)
            if facts["step"] > self.state.global_step:
                reason = f"of step {facts['step']}, to which the run has not come"
            elif facts["val_images"] != self.images[1]:
                reason = "the best on other validation images"
        except FileNotFoundError:
            return
        except (seal.Broken, KeyError) as error:
            reason = str(error)
        if reason:
            log.warning("%s: %s; it stays as %s", best, reason, checkpoint.put_aside(best).name)
