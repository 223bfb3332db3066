"""The paper's SGD with momentum (section 5.1), and what makes it leave out a step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn, optim

from senet import config

NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


def sgd(net: nn.Module, settings: config.Optim) -> optim.SGD:
    """SGD over all parameters of `net`; normalisation layers and biases decay only where the settings say so.

    They are told by the type of the module that owns them: names miss the BN of a shortcut.
    """
    decay: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for module in net.modules():
        for name, parameter in module.named_parameters(recurse=False):
            spared = isinstance(module, NORMS) or name == "bias"
            (rest if spared and not settings.decay_norm_and_bias else decay).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decay, "weight_decay": settings.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    optimiser = optim.SGD(
        [group for group in groups if group["params"]],
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        fused=True,  # one kernel a step, and one that can be left out without a look at the device
    )
    if settings.momentum:
        # The kernel allocates what it does not find and, when the first step is left out, never fills it.
        for group in optimiser.param_groups:
            for parameter in group["params"]:
                optimiser.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimiser


def in_parameters_layout(optimiser: optim.Optimizer) -> None:
    """Give what `optimiser` keeps for each parameter (its momentum) the strides of that parameter.

    `load_state_dict` keeps the strides of the checkpoint, which another execution may have written; fused kernels take
    all tensors of a parameter for alike, and mix up their values without an error on a CPU.
    """
    for parameter, state in optimiser.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def set_learning_rate(optimiser: optim.Optimizer, lr: float | Tensor) -> None:
    for group in optimiser.param_groups:
        group["lr"] = lr


class Found:
    """What a fused optimiser is told about its gradients, on the device: above 0, it leaves the step out.

    It is heard where the optimiser hears it, so it is the same with a GradScaler, which tells it, and without, where
    `look` does.
    """

    def __init__(self, optimiser: optim.Optimizer) -> None:
        self.optimiser = optimiser
        self.one = torch.ones((), device=optimiser.param_groups[0]["params"][0].device)
        self.told = torch.zeros_like(self.one)
        optimiser.register_step_pre_hook(self._listen)

    def _listen(self, optimiser: optim.Optimizer, *_: Any) -> None:
        self.told = optimiser.found_inf  # type: ignore[attr-defined]

    def look(self, gradients: list[Tensor]) -> None:
        """Tell the optimiser whether any of `gradients` is not finite, by the kernel that a GradScaler uses, without a
        scale.
        """
        found = torch.zeros_like(self.one)
        torch._amp_foreach_non_finite_check_and_unscale_(gradients, found, self.one)
        self.optimiser.found_inf = found  # type: ignore[attr-defined]

    def nothing(self) -> Tensor:
        """Whether the last step was made: a bool on the device."""
        return self.told == 0
