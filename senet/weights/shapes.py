"""The residual network that weights are of, read off their names and shapes."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from senet.config import SE, Basic, Bottleneck, CifarStem, Stem

Residual = Basic | Bottleneck
PLACES: dict[str, Any] = {  # of SE, by the slot in a block that holds it
    "se": "standard", "se_pre": "pre", "se_post": "post", "se_identity": "identity", "branch.se": "conv3x3",
}  # fmt: skip


def network(state: Mapping[str, Tensor]) -> Residual | None:
    """Return the network of a state dict with our names; None if there is no such residual network.

    What shapes do not tell (where blocks stride, how the stem pools, which gates there are) has its defaults. Other
    shapes than those of the network are for the caller to find.
    """
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    counts: list[int] = []
    while f"stages.stage{len(counts) + 2}.0.branch.conv1.weight" in shapes:
        stage = f"stages.stage{len(counts) + 2}"
        counts.append(next(i for i in range(len(shapes)) if f"{stage}.{i}.branch.conv1.weight" not in shapes))
    stem = _stem(shapes)
    if not counts or stem is None:
        return None
    first = [f"stages.stage{stage}.0" for stage in range(2, len(counts) + 2)]
    bottleneck = f"{first[0]}.branch.conv3.weight" in shapes
    middle = "conv2" if bottleneck else "conv1"
    try:
        widths = tuple(shapes[f"{unit}.branch.{middle}.weight"][0] for unit in first)
        outputs = shapes[f"{first[0]}.branch.{'conv3' if bottleneck else 'conv2'}.weight"][0]
        expansion = max(1, outputs // widths[0])
        settings: dict[str, Any] = {"blocks": tuple(counts), "widths": widths, "expansion": expansion}
        if isinstance(stem, CifarStem) and stem.width == widths[0]:
            stem = CifarStem()
        settings |= {"stem": stem, "preactivation": f"{first[0]}.bn.weight" in shapes, "se": _se(shapes)}
        kernels = [shapes.get(f"{unit}.shortcut.conv.weight", (0, 0, 1))[2] for unit in first[1:]]
        settings["projection"] = "conv3x3" if 3 in kernels else "conv1x1"
        if not bottleneck:
            return Basic(**settings)
        narrow = shapes[f"{first[0]}.branch.conv1.weight"][0]
        groups = narrow // shapes[f"{first[0]}.branch.conv2.weight"][1]
        return Bottleneck(**settings, groups=groups, reduce=narrow / widths[0])
    except (LookupError, ValueError, ZeroDivisionError):
        return None


def _stem(shapes: Mapping[str, tuple[int, ...]]) -> Stem | CifarStem | None:
    if "stem.conv1.weight" in shapes:
        return Stem("conv3x3x3")
    match shapes.get("stem.conv.weight"):
        case (64, 3, 7, 7):
            return Stem()
        case (width, 3, 3, 3):
            return CifarStem(width=width)
    return None


def _se(shapes: Mapping[str, tuple[int, ...]]) -> SE | None:
    """Return the SE blocks of a network; None if it has none."""
    found = []  # (channels, width between), the place, the stage
    for name, shape in shapes.items():
        if name.endswith(".down.weight"):
            _, stage, _, *slot = name.removesuffix(".down.weight").split(".")
            found.append(((shape[1], shape[0]), ".".join(slot), int(stage.removeprefix("stage"))))
    if not found:
        return None
    sizes = {size for size, _, _ in found}
    stages = {int(name.split(".")[1].removeprefix("stage")) for name in shapes if name.startswith("stages.")}
    own = {stage for _, _, stage in found}
    return SE(
        **_width(sizes),
        bias=any(name.endswith(".down.bias") for name in shapes),
        place=PLACES.get(found[0][1], "standard"),
        stages=None if own == stages else tuple(sorted(own)),
    )


def _width(sizes: Iterable[tuple[int, int]]) -> dict[str, Any]:
    """Return the settings that give these widths: a ratio, one that is rounded to multiples of 8, or one width."""
    channels, middle = max(sizes)
    for ratio in (16, channels // middle):
        for multiple in (1, 8):
            settings: dict[str, Any] = {"ratio": ratio, "multiple": multiple}
            if all(SE(**settings).between(wide) == narrow for wide, narrow in sizes):
                return settings
    return {"width": middle}
