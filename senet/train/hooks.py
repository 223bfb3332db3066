"""Places in the training loop where something else may act: ledger, step timer, faults, watchdog, average of weights.

A new hook is a class derived from `Hooks` with the methods it needs; `Run` adds it to its list.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from senet.data.loader import Batch
from senet.system import faults
from senet.system.fan_out import fan_out

if TYPE_CHECKING:
    from senet.train.trainer import Trainer


class Hooks:
    """Does nothing at every place of the loop. Steps count from 0 over the run; none may wait for the device."""

    def attach(self, trainer: Trainer) -> None:
        """The trainer is complete: take from it what the other methods need."""

    def train(self, epoch: int, first: int) -> None:
        """Training begins, or goes on, at step `first` of an epoch (from 0); the net is in training mode."""

    def before_data(self, step: int, waited: float) -> None:
        """A micro-batch is about to be fetched; `waited` is the loader's running total of seconds waited for."""

    def before_compute(self, step: int, micro: int, batch: Batch) -> None:
        """The micro-batch number `micro` of a step is there."""

    def after_compute(self, step: int, waited: float) -> None:
        """Its backward pass has returned, though a GPU may still be at it."""

    def after_step(self, step: int, finite: Tensor) -> None:
        """The optimiser has made the step, or left it out if `finite`, a bool on the device, is False."""

    def pause(self) -> None:
        """What comes now, until the next micro-batch, is no part of a step: saving, validation."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs: tensors and plain containers."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to what `state_dict` returned; `state` is empty if the hook was not there then."""


class HookList(Hooks):
    """Calls several hooks at each place, in their order."""

    def __init__(self, *hooks: Hooks) -> None:
        self.hooks = hooks
        for place in ("attach", "train", "before_data", "before_compute", "after_compute", "after_step", "pause"):
            setattr(self, place, fan_out(hooks, place))

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all hooks, by the names of their classes."""
        return {type(hook).__name__: state for hook in self.hooks if (state := hook.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for hook in self.hooks:
            hook.load_state_dict(state.get(type(hook).__name__, {}))


class Faults(Hooks):
    """Lets faults happen that the environment names (see `senet.system.faults`)."""

    def before_data(self, step: int, waited: float) -> None:
        faults.meet("data", step)

    def before_compute(self, step: int, micro: int, batch: Batch) -> None:
        if faults.nan(step):
            batch.images[0] = float("nan")
