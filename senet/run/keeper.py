"""The checkpoints of a run: when one is written and under which names, and which one the run goes on from."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from senet.config import from_dict
from senet.errors import UsageError
from senet.run import changes, checkpoint
from senet.run.flags import Flags
from senet.run.saver import Saver
from senet.run.state import State
from senet.system.run_folder import RunFolder


class Keeper:
    """Saves the state of a run and goes back to what was saved. All ranks take part; the first one reads and writes."""

    def __init__(self, folder: RunFolder, flags: Flags, state: State, images: str, pixels: Mapping[str, Any]) -> None:
        """`images`: the fingerprint of the training images; `pixels`: how those of the validation are made."""
        self.folder, self.flags, self.state = folder.checkpoints, flags, state
        self.world = state.trainer.world
        self.images, self.pixels = images, dict(pixels)
        self.changed: list[str] = []  # settings that differ from those of the checkpoint
        self.saved_at = time.monotonic()
        self._saver: Saver | None = None
        self._timed_due = 0.0  # by the monotonic clock: when the next one is to stay for its time

    def start(self) -> None:
        """Begin to write: the folder is this run's."""
        if self.world.is_main:
            self._saver = Saver(self.folder, self.flags.keep)
            self._timed_due = time.monotonic() + 3600 * (self.flags.keep_hours - self.folder.hours_since_timed())

    @property
    def due(self) -> float:
        """Seconds until it is time to save, by this rank's clock; less than 0 if it is overdue."""
        return self.saved_at + 60 * self.flags.save_minutes - time.monotonic()

    def save(self, errors: Mapping[str, float]) -> None:
        """Write a checkpoint of the current position behind the training's back; `errors` of the epoch that it ends."""
        state, flags = self.state, self.flags
        payload = state.pack(images=self.images, pixels=self.pixels)
        if self._saver:
            names = [self.folder.best] if errors and state.best.get("epoch") == state.epoch else []
            if errors and flags.keep_every and state.epoch % flags.keep_every == 0:
                names.append(self.folder.of_epoch(state.epoch))
            if flags.keep_hours and time.monotonic() >= self._timed_due:
                names.append(self.folder.timed(state.global_step))
                self._timed_due = time.monotonic() + 3600 * flags.keep_hours
            self._saver.save(payload, errors, names)
        self.saved_at = time.monotonic()

    def news(self) -> list[str]:
        """Return what could not be written since the last call."""
        return self._saver.news() if self._saver else []

    def finish(self) -> None:
        """Wait until everything is on disk."""
        if self._saver:
            self._saver.finish()

    def close(self) -> None:
        if self._saver:
            self._saver.close()

    def resume(self, before: int | None = None) -> bool:
        """Go back to the newest valid checkpoint, of a step `before` that one if given; return whether there is one.

        All ranks read the one that the first rank found: a shared folder may show them different newest files. Raises
        UsageError for a checkpoint of another net, other images, or settings that must not change.
        """
        self.finish()
        found = checkpoint.newest(self.folder, before) if self.world.is_main else None
        path = self.world.broadcast_object(found and found[0])
        if path is None:
            return False
        payload = found[1] if found else checkpoint.read(path)
        config = self.state.trainer.config
        self.changed = changes.check_same(from_dict(payload.config), config, path, self.flags.accept_changes)
        changes.check_pixels(payload.pixels, self.pixels)
        data_changed = any(change.startswith("data.") for change in self.changed)
        if payload.images != self.images and not data_changed:
            raise UsageError(
                f"--data {self.flags.source.root}: other images than those {path} was trained on; give them, or "
                "another --out"
            )
        self.state.restore(payload)
        if self.state.step and self.changed:
            changes.check_within_epoch(self.changed, path)
        return True
