"""Models of timm, trained and evaluated by the same pipeline."""

import logging
from pathlib import Path
from typing import Any

from torch import nn

from senet import config
from senet.config.files import nearest
from senet.errors import UsageError

log = logging.getLogger(__name__)


def untrained(net: config.Timm, classes: int) -> nn.Module:
    """Return a model of timm with fresh weights. Raises UsageError for a name that timm does not know."""
    return _create(net.timm, pretrained=False, num_classes=classes)


def released(name: str, weights: Path | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """Return timm's model `name` with its released weights (downloaded, or from a file), and the fields of
    config.Folder that suit it.

    Raises UsageError for a name that timm does not know, and for weights that cannot be loaded.
    """
    if weights is not None and not weights.exists():
        raise UsageError(f"--weights {weights}: no such file")
    wants = _wants(name)
    overlay = {"file": str(weights)} if weights else None
    try:
        net = _create(name, pretrained=True, pretrained_cfg_overlay=overlay)
    except UsageError:
        raise
    except Exception as error:
        why = " ".join(str(error).split())[:200]
        raise UsageError(
            f"timm:{name}: weights cannot be downloaded ({why}); give a file of them with --weights"
            if weights is None
            else f"--weights {weights}: not the weights of timm:{name} ({why}); give those of this model"
        ) from None
    crop, interpolation = wants["input_size"][-1], wants["interpolation"]
    resize = int(crop / wants["crop_pct"])
    facts = {"classes": net.num_classes, "crop": crop, "resize": resize, "mean": wants["mean"], "std": wants["std"]}
    return net, facts | {"interpolation": interpolation if interpolation == "bilinear" else "bicubic"}


def _wants(name: str) -> dict[str, Any]:
    """Return how a model wants its images. Raises UsageError for what is not done here, and for an unknown name."""
    import timm

    _check_known(name)
    usual = timm.models.get_pretrained_cfg(name)
    known = usual.to_dict() if usual else {}
    wants: dict[str, Any] = timm.data.resolve_data_config(pretrained_cfg=known, use_test_size=True)
    (channels, height, width), mode = wants["input_size"], wants.get("crop_mode", "center")
    if mode != "center" or channels != 3 or height != width:
        shape = f"{channels} x {height} x {width}"
        raise UsageError(f"timm:{name}: wants images of {shape}, crop mode {mode}; square centre crops are made here")
    if wants["interpolation"] not in ("bilinear", "bicubic"):
        log.warning("timm:%s: wants %s interpolation, and gets bicubic", name, wants["interpolation"])
    return wants


def exists(name: str) -> bool:
    """Tell whether timm has a model `name`."""
    import timm

    return bool(timm.is_model(name))


def from_folder(folder: Path) -> nn.Module:
    """Return the model in a folder of timm's form: config.json and model.safetensors."""
    import timm

    return timm.create_model(f"local-dir:{folder}", pretrained=True)


def parts(net: nn.Module) -> dict[str | int, list[nn.Parameter]]:
    """Return the parameters of the stem and the stages of a model of timm, numbered from 2 as those of ResNets are."""
    from timm.models import group_parameters

    named = dict(net.named_parameters())
    # The last group is the classifier with, in some models, what stands before it.
    groups = list(group_parameters(net, net.group_matcher(coarse=True)).values())[:-1]  # type: ignore[operator]
    return {1 + number if number else "stem": [named[name] for name in group] for number, group in enumerate(groups)}


def _check_known(name: str) -> None:
    """Raise UsageError for a name that timm does not know."""
    import timm

    if not timm.is_model(name):
        raise UsageError(f"net.timm: timm has no model {name!r}{nearest(name, timm.list_models())}")


def _create(name: str, **settings: Any) -> nn.Module:
    import timm

    _check_known(name)
    return timm.create_model(name, **settings)
