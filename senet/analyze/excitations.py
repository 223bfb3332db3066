"""What SE's gates do for which class (section 7.2, figures 6 and 7)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor

from senet.analyze.blocks import gates
from senet.data.imagenet import comparable
from senet.data.loader import Batch
from senet.data.source import Source, val_loader
from senet.distributed import World
from senet.errors import UsageError
from senet.plots import COLOURS, INK, page
from senet.run.load import Trained
from senet.run.look import one_pass
from senet.train.evaluate import View

PAPER: dict[str, dict[str, float]] = yaml.safe_load(Path(__file__).with_name("paper.yaml").read_text())
PAPERS = ("goldfish", "pug", "airliner", "cliff")  # its plane may be another
CHANNELS = 50  # shown
ALL = 5000  # images of all classes
SATURATED = 0.05  # from 0 or 1


@dataclass(frozen=True)
class Excitation:
    """The gates of a block: means and deviations over images, [groups, channels]; groups are classes, and all."""

    block: str
    groups: tuple[str, ...]  # the last is "all"
    mean: NDArray[np.float64]
    std: NDArray[np.float64]

    @property
    def spread(self) -> float:
        """The standard deviation over the classes, a mean over channels."""
        return float(self.mean[:-1].std(0).mean())

    @property
    def saturated(self) -> float:
        """The share of channels whose mean gate is next to 0 or 1."""
        return float((np.abs(self.mean[-1] - 0.5) > 0.5 - SATURATED).mean())


def record(
    trained: Trained, source: Source, world: World, classes: Sequence[str] | None, images: int = 50
) -> list[Excitation]:
    """Return the gates of each block for `images` validation images of each of `classes`, and for up to ALL of all
    classes. By default they are the paper's four, or four others.

    Raises UsageError for a class that the data set has not.
    """
    config = trained.config
    whole = val_loader(config.data, source, 0, 1, torch.device("cpu"))
    labels, names = whole.labels, whole.classes or trained.classes
    whole.close()
    if classes is None:
        known = {comparable(name) for name in names}
        others = [str(label) for label in np.unique(np.linspace(0, config.data.classes - 1, 4).astype(int))]
        classes = PAPERS if known.issuperset(PAPERS) else others
    chosen = [find(name, names) for name in classes]
    every = np.unique(np.linspace(0, len(labels) - 1, ALL).astype(np.int64))
    of_class = [np.flatnonzero(labels == label)[:images] for label in chosen]
    if empty := [name for name, numbers in zip(classes, of_class, strict=True) if not len(numbers)]:
        raise UsageError(f"--classes: no validation image of {empty[0]}; name another class")
    groups = [*of_class, every]
    loader = val_loader(config.data, source, 0, 1, world.device, only=np.unique(np.concatenate(groups)))
    members = np.stack([np.isin(np.arange(len(labels)), numbers) for numbers in groups])  # [groups, images]
    counts = torch.zeros(len(groups), dtype=torch.float64)
    sums: dict[str, Tensor] = {}
    squares: dict[str, Tensor] = {}
    with gates(trained.net) as last:

        def add(batch: Batch, logits: Tensor) -> None:
            member = torch.from_numpy(members[:, batch.keys]).double()
            counts.add_(member.sum(1))
            for name, values in last.items():
                own = values[: len(batch.labels)].double().cpu()
                sums[name] = sums.get(name, 0) + member @ own
                squares[name] = squares.get(name, 0) + member @ own.square()

        one_pass(trained, loader, world, View().of(config.data), add)
    titles = (*(names[label] if names else str(label) for label in chosen), "all")
    found = []
    for name, total in sums.items():
        mean = total / counts[:, None]
        std = (squares[name] / counts[:, None] - mean.square()).clamp(min=0).sqrt()
        found.append(Excitation(name, titles, mean.numpy(), std.numpy()))
    return found


def find(name: str, names: Sequence[str]) -> int:
    """Return the label of a class by its name, wnid or number. Raises UsageError."""
    known = {comparable(each): label for label, each in enumerate(names)}
    label = known.get(comparable(name), int(name) if name.isdigit() else -1)
    if not 0 <= label < (len(names) or label + 1):
        raise UsageError(f"--classes: no class {name!r}; there are {', '.join(list(known)[:10])}, ...")
    return label


def shown(found: Sequence[Excitation]) -> list[Excitation]:
    """Return the blocks that the paper shows: the last one of each stage, and the last three of the last stage."""
    stages: dict[str, list[Excitation]] = {}
    for each in found:
        stage = each.block.split("_")[1] if each.block.startswith("SE_") else ""
        stages.setdefault(stage, []).append(each)
    *before, last = stages.values()
    return [stage[-1] for stage in before][-9:] + last[-3:]


def draw(found: Sequence[Excitation], file: Path, within: bool = False) -> None:
    """Draw mean gates of fifty channels, a line for each class and for all (figure 6); if `within`, for two classes,
    and how they vary from image to image (figure 7).
    """
    title = "Excitation within a class: mean and deviation over images" if within else "Mean excitation by class"
    groups = list(range(len(found[0].groups)))
    groups = groups[:-1][:2] if within else groups
    with page(file, title, len(found), width=4.2, height=3.0, columns=3) as panels:
        for axes, each in zip(panels, found, strict=True):
            channels = np.unique(np.linspace(0, each.mean.shape[1] - 1, CHANNELS).astype(int))
            for group in groups:
                mean, std = each.mean[group, channels], each.std[group, channels]
                black = each.groups[group] == "all"
                style: Any = {"color": INK if black else COLOURS[group % len(COLOURS)], "linewidth": 1.1}
                axes.plot(channels, mean, label=each.groups[group], **style)
                if within:
                    axes.fill_between(channels, mean - std, mean + std, color=style["color"], alpha=0.2, linewidth=0)
            axes.set_title(each.block)
            axes.set_ylim(-0.02, 1.02)
            axes.set_xlabel("channel")
        panels[0].set_ylabel("gate")
        figure = panels[0].get_figure(root=True)
        assert figure is not None
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=len(groups))


def table(found: Sequence[Excitation]) -> tuple[list[str], list[list[object]]]:
    """Return header and rows of a table of blocks, beside the paper's figures if it has the net's blocks."""
    theirs = PAPER if PAPER.keys() <= {each.block for each in found} else {}
    header = ["block", *found[0].groups, "range over channels", "std over channels", "std over classes", "saturated %"]
    rows: list[list[object]] = []
    for each in found:
        low, high = each.mean[-1].min(), each.mean[-1].max()
        row: list[object] = [each.block, *(float(mean) for mean in each.mean.mean(1)), f"{low:.2f}-{high:.2f}"]
        row += [float(each.mean[-1].std()), each.spread, 100 * each.saturated]
        if theirs:
            paper = theirs.get(each.block)
            row += [paper[key] if paper else None for key in ("mean", "channels", "classes")]
        rows.append(row)
    return header + ["paper: all", "std over channels", "std over classes"] * bool(theirs), rows
