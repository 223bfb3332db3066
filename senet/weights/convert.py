"""The same network in another library, and proof that it computes the same."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from senet import config, models
from senet.config import Basic, Bottleneck, Config, difference
from senet.errors import UsageError
from senet.models import timm
from senet.weights import check, recognise, shapes

Target = Literal["timm", "torchvision"]
DEPTHS = {(2, 2, 2, 2): (18, 26), (3, 4, 6, 3): (34, 50), (3, 4, 23, 3): (0, 101), (3, 8, 36, 3): (0, 152)}
TOLERANCE = 1e-5  # of the largest logit


class NoCounterpart(UsageError):
    """Another library has no network that computes the same; the message says why."""


class Counterpart(NamedTuple):
    """A network of another library with the weights of one of ours."""

    name: str
    net: nn.Module  # on the CPU, in evaluation mode
    state: dict[str, Tensor]  # its state dict


def counterpart(net: config.Net, state: Mapping[str, Tensor], target: Target) -> Counterpart:
    """Return the network of another library that computes what `net` with `state` does.

    Raises NoCounterpart that says in which settings the nearest one there differs.
    """
    name = _name(net)
    with models.shapes_only():
        other = _build(target, name, len(state["fc.weight"])) if name else None
    if name is None or other is None or not isinstance(net, Basic | Bottleneck):
        raise NoCounterpart(f"{target} has no network like this {net.family}" + (f" ({name})" if name else ""))
    wanted = dict(other.eval().state_dict())
    theirs = recognise(wanted, f"{target}:{name}")
    assert isinstance(theirs.net, Basic | Bottleneck)
    own, same = _comparable(net, state), _comparable(theirs.net, theirs.state)
    if own.se and same.se and not own.se.bias:  # no bias is one of 0
        own = replace(own, se=replace(own.se, bias=True))
    if changed := difference(Config(net=own), Config(net=same)):
        raise NoCounterpart(f"{target} has no network like this one: its {name} differs in {'; '.join(changed)}")
    assert theirs.library is not None
    named = {theirs.library.from_native(key): value for key, value in state.items()}
    full = {key: named[key] if key in named else torch.zeros(value.shape) for key, value in wanted.items()}
    check(full, wanted, name)
    other.load_state_dict(full, assign=True)
    return Counterpart(name, other, full)


@torch.inference_mode()
def deviation(one: nn.Module, other: nn.Module, side: int) -> float:
    """Return how far logits of random images of `side` pixels are apart, as a share of the largest."""
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    expected, found = one.eval()(images), other.eval()(images)
    return float((expected - found).abs().max() / expected.abs().max())


def _comparable(net: shapes.Residual, state: Mapping[str, Tensor]) -> shapes.Residual:
    """Return the settings that decide what `net` computes, written as those that are read off shapes."""
    read = shapes.network(state)
    assert read is not None
    se = net.se
    if se and (found := read.se):
        se = replace(se, ratio=found.ratio, width=found.width, multiple=found.multiple, stages=found.stages)
    return replace(net, dropout=0.0, zero_init=False, se=se)


def _name(net: config.Net) -> str | None:
    """Return what timm and torchvision call a network like `net`; None if there is no name for it."""
    if not isinstance(net, Basic | Bottleneck) or not isinstance(net.stem, config.Stem) or net.blocks not in DEPTHS:
        return None
    bottleneck = isinstance(net, Bottleneck)
    depth, width = DEPTHS[net.blocks][bottleneck], net.widths[0]
    legacy = "legacy_" if net.stem.maxpool == "ceil" else ""
    if net.stem.kind == "conv3x3x3":
        return f"{legacy}senet154"
    se = f"{legacy}se" if net.se else legacy
    if isinstance(net, Bottleneck) and net.groups > 1:
        return f"{se}resnext{depth}_{net.groups}x{width // net.groups}d"
    return f"wide_{se}resnet{depth}_2" if width == 128 else f"{se}resnet{depth}"


def _build(target: Target, name: str, classes: int) -> nn.Module | None:
    """Build a network of another library; None if it has none of this name."""
    if target == "timm":
        return models.build(config.Timm(name), classes) if timm.exists(name) else None
    from torchvision.models import get_model, list_models

    return get_model(name, weights=None, num_classes=classes) if name in list_models() else None
