"""Steps whose gradients are not finite: the device leaves them out, and the host learns of it later."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer


def reads_found_inf(optimiser: Optimizer) -> bool:
    """Return whether an optimiser leaves out steps by itself, on the device, by the mark that GradScaler goes by."""
    return getattr(optimiser, "_step_supports_amp_scaling", False)


class NonFiniteGuard:
    """Makes an optimiser leave out every step whose gradients are not finite, without waiting for the device.

    A fused optimiser of torch reads `found_inf`, a tensor on the device, before it writes anything: above 0 it changes
    neither weights nor its own state. A GradScaler sets that tensor itself; without one, `check` does. Other optimisers
    are made to read it, at the price of a wait for the device in each step: they keep part of their state on the host.
    """

    def __init__(self, optimiser: Optimizer) -> None:
        self.optimiser = optimiser
        self.consecutive_skips = 0  # steps left out up to the last one that `nonfinite_steps` has seen
        self._one = torch.ones((), device=optimiser.param_groups[0]["params"][0].device)
        self._found_inf = torch.zeros_like(self._one)
        self._recorded: list[tuple[int, Tensor]] = []
        step = optimiser.step
        waits = not reads_found_inf(optimiser)

        def guarded() -> None:
            # A GradScaler deletes it after the step.
            self._found_inf = optimiser.found_inf  # type: ignore[attr-defined]
            if not waits:
                step()
            elif not self._found_inf:
                if (scale := getattr(optimiser, "grad_scale", None)) is not None:  # of a GradScaler
                    parameters = [p for group in optimiser.param_groups for p in group["params"]]
                    torch._foreach_div_([p.grad for p in parameters if p.grad is not None], scale)
                step()

        optimiser.step = guarded  # type: ignore[method-assign, assignment]
        optimiser._step_supports_amp_scaling = True  # type: ignore[attr-defined]

    def check(self, gradients: list[Tensor]) -> None:
        """Set `found_inf` from `gradients`, with the kernel that a GradScaler uses, at a scale of 1."""
        found_inf = torch.zeros_like(self._one)
        torch._amp_foreach_non_finite_check_and_unscale_(gradients, found_inf, self._one)
        self.optimiser.found_inf = found_inf  # type: ignore[attr-defined]

    def finite(self) -> Tensor:
        """Return whether the last step was made: a bool on the device."""
        return self._found_inf == 0

    def record(self, step: int, finite: Tensor) -> None:
        """Remember the result of `step`, a bool on the device, for the next call of `nonfinite_steps`."""
        self._recorded.append((step, finite))

    def nonfinite_steps(self) -> list[int]:
        """Return the steps recorded since the last call that were left out. Waits for the device."""
        steps: Sequence[int] = [step for step, _ in self._recorded]
        results = torch.stack([finite for _, finite in self._recorded]).tolist() if steps else []
        self._recorded.clear()
        for finite in results:
            self.consecutive_skips = 0 if finite else self.consecutive_skips + 1
        return [step for step, finite in zip(steps, results, strict=True) if not finite]
