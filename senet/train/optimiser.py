"""The optimisers of configs: the paper's SGD with momentum (section 5.1), or one of the library timm."""

from __future__ import annotations

import inspect
from dataclasses import asdict, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from senet import config
from senet.config.files import nearest
from senet.errors import UsageError

NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


def build(net: nn.Module, settings: config.OptimSetting) -> Optimizer:
    """Return the optimiser that `settings` describe over the parameters of `net`, which are on their device already.

    Raises UsageError for one that timm does not have, or cannot make of these arguments.
    """
    groups = parameter_groups(net, settings)
    if not isinstance(settings, config.SGD):
        return _of_timm(groups, settings)
    optimiser = SGD(
        groups,
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        fused=True,  # one kernel a step, and one that can be left out without waiting for the device
    )
    if settings.momentum:
        # The kernel allocates what it does not find and, when the first step is left out, never fills it.
        for group in optimiser.param_groups:
            for parameter in group["params"]:
                optimiser.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimiser


def _of_timm(groups: list[dict[str, Any]], settings: config.OptimSetting) -> Optimizer:
    """Make an optimiser by timm's factory, torch's own ones as fused kernels."""
    # Importing timm takes seconds.
    from timm.optim import create_optimizer_v2, get_optimizer_class, get_optimizer_info, list_optimizers

    if isinstance(settings, config.TimmOptim):
        name, arguments = settings.timm, dict(settings.arguments)
    else:
        common = {"name", *(field.name for field in fields(config.Optim))}
        name, arguments = settings.name, {key: value for key, value in asdict(settings).items() if key not in common}
    if name not in list_optimizers():
        raise UsageError(f"optim.timm: timm has no optimiser {name!r}{nearest(name, list_optimizers())}")
    try:
        if get_optimizer_info(name).second_order:
            raise ValueError("it needs second derivatives, which this loop does not take")
        known = inspect.signature(get_optimizer_class(name, bind_defaults=False)).parameters
        for key in arguments:
            if key not in known or key in ("params", "lr", "weight_decay"):
                raise UsageError(f"optim.arguments.{key}: {name} has no such argument{nearest(key, list(known)[2:])}")
        if "fused" in known:
            arguments["fused"] = True
        return create_optimizer_v2(groups, name, lr=settings.lr, **arguments)
    except (AssertionError, ImportError, RuntimeError, TypeError, ValueError) as error:
        raise UsageError(f"optim: {name} cannot be made: {' '.join(str(error).split())}") from None


def parameter_groups(net: nn.Module, settings: config.Optim) -> list[dict[str, Any]]:
    """Divide the parameters of `net` into those with weight decay and those without.

    Normalisation layers and biases decay only if the settings say so. They are known by the type of the module that
    owns them: names would miss the BN of a shortcut.
    """
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for module in net.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            is_norm_or_bias = isinstance(module, NORMS) or name == "bias"
            (spared if is_norm_or_bias and not settings.decay_norm_and_bias else decayed).append(parameter)
    groups = ((decayed, settings.weight_decay), (spared, 0.0))
    return [{"params": parameters, "weight_decay": decay} for parameters, decay in groups if parameters]


def in_parameters_layout(optimiser: Optimizer) -> None:
    """Give what `optimiser` keeps for each parameter (its momentum) the strides of that parameter.

    `load_state_dict` keeps the strides of the checkpoint, which another execution may have written; fused kernels take
    all tensors of a parameter for alike, and mix up their values without an error on a CPU.
    """
    for parameter, state in optimiser.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def set_learning_rate(optimiser: Optimizer, lr: float | Tensor) -> None:
    """Set the learning rate, a number or a tensor; a group with an `lr_scale` gets so many times that."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group["lr_scale"] if "lr_scale" in group else lr


def learning_rate(optimiser: Optimizer) -> Any:
    """Return the learning rate that was set."""
    group = optimiser.param_groups[0]
    return group["lr"] / group.get("lr_scale", 1.0)
