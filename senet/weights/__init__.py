"""Weights of this project and of others: read safely, recognised by their names, converted both ways.

`files` reads and writes them, `names` knows what each library calls the parts of a residual network, `shapes` reads the
network off them, `convert` names the same network of another library.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from senet import config, models
from senet.config import Config
from senet.errors import UsageError
from senet.weights import files, shapes
from senet.weights.names import LIBRARIES, Library

SHOWN = 4  # names in a list of them


@dataclass(frozen=True)
class Weights:
    """Weights under our names, complete, and the net that they are of."""

    state: dict[str, Tensor]
    net: config.Net
    library: Library | None = None  # whose they are; None: this project's
    config: Config | None = None  # of their training, if they say so
    classes: tuple[str, ...] = ()  # names in order of label, if they say so
    averaged: bool = False  # over training

    @property
    def labels(self) -> int:
        """How many classes the net tells apart."""
        return len(self.state["fc.weight"])


def read(path: Path, averaged: bool = False) -> Weights:
    """Return the weights in a file; of a file with plain and `averaged` ones, which are asked for.

    Raises UsageError for a file that cannot be read safely, and for weights of no network that is known.
    """
    file = files.read(path, averaged)
    if not file.facts:
        return recognise(file.state, str(path), file.averaged)
    settings = config.from_dict(file.facts.get("config", {}), str(path))
    check(file.state, _wanted(settings.net, settings.data.classes), str(path))
    names = tuple(map(str, file.facts.get("classes", ())))
    return Weights(file.state, settings.net, None, settings, names, file.averaged)


def recognise(state: Mapping[str, Tensor], where: str, averaged: bool = False) -> Weights:
    """Return the weights in a state dict of a library that is recognised by its names; `where` it comes from.

    Raises UsageError, with the names that are missing or too many, for weights of no residual network.
    """
    library = None
    if not any(name.startswith("stages.stage") for name in state):
        library = max(LIBRARIES, key=lambda each: sum(each.to_native(name) is not None for name in state))
    own = {(library.to_native(name) or name) if library else name: value for name, value in state.items()}
    # Linear layers do as 1x1 convolutions do.
    for name, value in own.items():
        if ".se." in name and value.dim() == 2:
            own[name] = value[..., None, None]
    net = shapes.network(own)
    if net is None or "fc.weight" not in own:
        raise UsageError(
            f"{where}: not weights of a residual network of this project, timm, torchvision, Cadene, moskomule or "
            f"NVIDIA ({_listed(list(state))}); other networks of timm are used as timm:NAME"
        )
    wanted = _wanted(net, len(own["fc.weight"]))
    for name, value in wanted.items():  # BN's counters, which old files lack, and no evaluation needs
        if name.endswith("num_batches_tracked"):
            own.setdefault(name, torch.zeros_like(value, device="cpu"))
    check(own, wanted, where, library)
    return Weights(own, _settings(net, library), library, averaged=averaged)


def check(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], where: str, library: Library | None = None
) -> None:
    """Refuse a state dict that is not one of the net whose state dict is `wanted`.

    Raises UsageError that lists, by their names in `library`, what is missing, too many, or of another shape.
    """

    def theirs(name: str) -> str:
        return (library and library.from_native(name)) or name

    lists = {
        "missing": [theirs(name) for name in wanted if name not in state],
        "unexpected": [theirs(name) for name in state if name not in wanted],
        "of another shape": [
            f"{theirs(name)} ({'x'.join(map(str, state[name].shape))} for {'x'.join(map(str, value.shape))})"
            for name, value in wanted.items()
            if name in state and state[name].shape != value.shape
        ],
    }
    if any(lists.values()):
        said = "; ".join(f"{what}: {_listed(names)}" for what, names in lists.items() if names)
        raise UsageError(f"{where}: weights of another net; {said}")


def _wanted(net: config.Net, classes: int) -> dict[str, Tensor]:
    with models.shapes_only():
        return dict(models.build(net, classes).state_dict())


def _settings(net: shapes.Residual, library: Library | None) -> shapes.Residual:
    """Return a net with what its library computes and shapes do not tell."""
    more: dict[str, Any] = {}
    if library and isinstance(net.stem, config.Stem):
        more["stem"] = config.Stem(net.stem.kind, "ceil" if library.caffe else "padded")
    if library and isinstance(net, config.Bottleneck):
        more["stride_at"] = "conv1x1" if library.caffe and net.groups == 1 else "conv3x3"
    elif library and isinstance(net, config.Basic):
        more["relu2"] = library.caffe
    return dataclasses.replace(net, **more)


def _listed(names: list[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
