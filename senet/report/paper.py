"""The paper's numbers for a config: the errors that its file quotes, and its curve in figure 4."""

import functools
import re
from pathlib import Path
from typing import NamedTuple

import yaml

from senet import config
from senet.config.files import CONFIGS
from senet.models.sizes import papers
from senet.system import table

FIGURE_4 = Path(__file__).with_name("figure4.yaml")


class Quoted(NamedTuple):
    """The paper's result of a net, errors in percent."""

    config: str  # the file, and perhaps variant, that quotes it
    text: str
    top1_error: float
    top5_error: float | None
    differs: list[str]  # the settings in which the run differs from that config
    train: list[tuple[float, float]]  # figure 4: (epoch, top-1 error); empty if the net is not in it
    val: list[tuple[float, float]]


def quoted(settings: config.Config) -> Quoted | None:
    """Return the paper's result for the net and data of a config, by the recipe most like it; None without one."""
    found = []
    for name, text in _quotes().items():
        numbers = re.match(r"([\d.]+)(?: top-1| % error)?(?:, ([\d.]+))?", text)
        theirs = _load(name)
        same = (theirs.net, theirs.data.set, theirs.data.classes) == (
            settings.net, settings.data.set, settings.data.classes
        )  # fmt: skip
        if same and numbers:
            differs = differences(theirs, settings)
            curves = yaml.safe_load(FIGURE_4.read_text())
            curve = curves["errors"].get(name.removesuffix(".yaml"), {})
            train, val = (list(zip(curves["epochs"], curve.get(part, []), strict=False)) for part in ("train", "val"))
            top5 = float(numbers[2]) if numbers[2] else None
            found.append(Quoted(name, text, float(numbers[1]), top5, differs, train, val))
    return min(found, key=lambda each: len(each.differs), default=None)


def differences(one: config.Config, other: config.Config) -> list[str]:
    """Return the settings in which two recipes differ; a seed is none of a recipe's."""
    return [line for line in config.difference(one, other) if not line.startswith("seed:")]


def expected(settings: config.Config) -> str:
    """Say which top-1 errors the paper had at a tenth of its training and before and after its drops of the learning
    rate, so that a run that goes wrong is seen long before its end.
    """
    found, chance = quoted(settings), f"chance is {100 - 100 / settings.data.classes:.4g} %"
    if found is None:
        return f"errors: the paper has none for this net on these data; {chance}"
    if not found.val:
        return f"errors: the paper ends at {found.text}, and has no curve of it; {chance}"
    curve = zip(found.val, found.train, strict=True)
    rows = [(str(epoch), val, train) for (epoch, val), (_, train) in curve if epoch in (10, 29, 32, 59, 62, 100)]
    differs = f"; this recipe differs from {found.config}: {', '.join(found.differs)}" if found.differs else ""
    header = ("after epoch", "% wrong in validation", "in training (figure 4)")
    return f"{table.text(header, rows)}\nfor epoch 1 the paper has no number; {chance}{differs}"


@functools.cache
def _quotes() -> dict[str, str]:
    """Return what config files quote: imagenet/se_resnet50.yaml, ablations/ratio.yaml:r2, ... -> the paper's errors."""
    return {
        f"{file.relative_to(CONFIGS)}{variant}": note.error
        for file in sorted(CONFIGS.rglob("*.yaml"))
        for variant, note in papers(file.read_text()).items()
    }


@functools.cache
def _load(name: str) -> config.Config:
    return config.load(str(CONFIGS / name))
