"""Squeeze-and-Excitation networks (Hu et al., arXiv 1709.01507): trained at ImageNet's scale, and used as a library.

`load` and `build` give networks, plain `torch.nn.Module`s that know their `config` and the names of their `classes`;
`preprocess` gives what they see of an image. senet/models/README.md shows them. Nothing is imported before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from senet.data.preprocess import Preprocess

__all__ = ["build", "load", "preprocess"]


def load(what: str, ema: bool | None = None) -> nn.Module:
    """Return a trained network on the CPU, in evaluation mode: [N, 3, H, W] -> logits [N, classes].

    `what` is a run folder, a checkpoint, a file of weights of any library that is known, or `timm:NAME`. An average of
    the weights is taken if there is one, unless `ema` is False. Raises senet.errors.UsageError if it cannot be had.
    """
    from senet.run import load as trained

    found = trained.load(what, ema=ema)
    found.net.config, found.net.classes = found.config, found.classes  # type: ignore[assignment]
    return found.net.eval()


def build(config: str, *overrides: str) -> nn.Module:
    """Return the network of a config with fresh weights: `build("se_resnet50", "net.se.ratio=8")`.

    Raises senet.errors.UsageError for a config that is not valid.
    """
    from senet import models
    from senet.config import load as settings

    found = settings(config, overrides)
    net = models.build(found.net, found.data.classes)
    net.config, net.classes = found, ()  # type: ignore[assignment]
    return net


def preprocess(net: nn.Module) -> Preprocess:
    """Return what makes [3, H, W], as `net` was validated on, of a path, the bytes of a file or a PIL image."""
    from senet.config import Config
    from senet.data.preprocess import Preprocess

    config = net.config
    assert isinstance(config, Config)
    return Preprocess(config.data)
