"""What a net says of images, and what is counted from it: errors by class, confusion, other labels, files."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from senet.data.philox import Floats, Ints
from senet.system.files import write_text

TOP = 5


@dataclass(frozen=True)
class Predictions:
    """The n images that were looked at, in order of number: the classes held most likely, best first."""

    images: Ints  # [n], numbers in the data set
    labels: Ints  # [n], -1 if unknown
    top: Ints  # [n, k]
    probabilities: Floats  # [n, k]
    of_label: Floats  # [n], the probability of the label

    @classmethod
    def of(cls, images: Ints, labels: Ints, logs: Tensor, top: int = TOP) -> Predictions:
        """Make them from logarithms of probabilities [n, classes]."""
        values, classes = logs.topk(min(top, logs.shape[1]), dim=1)
        own = logs.gather(1, torch.from_numpy(labels).clamp(min=0)[:, None])[:, 0]
        return cls(images, labels, classes.numpy(), values.exp().numpy(), own.exp().numpy())

    @classmethod
    def none(cls) -> Predictions:
        ints = np.zeros(0, np.int64)
        return cls(ints, ints, ints.reshape(0, TOP), np.zeros((0, TOP)), np.zeros(0))

    @classmethod
    def joined(cls, parts: Sequence[Predictions]) -> Predictions:
        full = [part for part in parts if len(part)] or [cls.none()]
        order = np.argsort(np.concatenate([part.images for part in full]), kind="stable")
        columns = zip(*(tuple(vars(part).values()) for part in full), strict=True)
        return cls(*(np.concatenate(column)[order] for column in columns))

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: NDArray[Any]) -> Predictions:
        return Predictions(*(column[rows] for column in vars(self).values()))

    @property
    def right(self) -> NDArray[np.bool_]:
        """Which images [n] have their label held most likely."""
        return np.asarray(self.top[:, 0] == self.labels)

    def worst(self, count: int) -> Predictions:
        """Return those wrong ones of which the net was surest: the least probability of the label first."""
        order = np.argsort(self.of_label, kind="stable")
        return self.take(order[~self.right[order]][:count])

    def confusion(self, classes: int) -> Ints:
        """Return how often [classes, classes] images of a class (row) were taken for each (column)."""
        counts = np.zeros((classes, classes), np.int64)
        np.add.at(counts, (self.labels, self.top[:, 0]), 1)
        return counts

    def write(self, file: Path, name: Callable[[int], str], classes: Sequence[str]) -> None:
        """Write a row an image to a .csv or .jsonl file. Raises OSError."""
        rows = list(self.rows(name, classes))
        if file.suffix == ".jsonl":
            return write_text(file, "".join(json.dumps(row) + "\n" for row in rows))
        head = ["image", "label", "of_label"] if (self.labels >= 0).any() else ["image"]
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        places = range(1, self.top.shape[1] + 1)
        writer.writerow([*head, *(f"{what}{place}" for place in places for what in ("class", "probability"))])
        for row in rows:
            writer.writerow([*(row.get(key, "") for key in head), *(value for pair in row["top"] for value in pair)])
        return write_text(file, table.getvalue())

    def rows(self, name: Callable[[int], str], classes: Sequence[str]) -> Iterable[dict[str, Any]]:
        """Yield for each image its name, its label and that one's probability if known, and (class, p) in `top`."""
        for image, label, top, probabilities, own in zip(*vars(self).values(), strict=True):
            known = {"label": classes[label], "of_label": round(float(own), 6)} if label >= 0 else {}
            pairs = [[classes[at], round(float(p), 6)] for at, p in zip(top, probabilities, strict=True)]
            yield {"image": name(int(image)), **known, "top": pairs}


def interval(error: float, images: int) -> tuple[float, float]:
    """Return the 95 % interval of an error in percent that was counted on so many images, by Wilson's formula."""
    z, p = 1.959964, error / 100
    centre, scale = p + z * z / (2 * images), 1 + z * z / images
    half = z * math.sqrt(p * (1 - p) / images + z * z / (4 * images * images))
    return 100 * max(0.0, (centre - half) / scale), 100 * min(1.0, (centre + half) / scale)


@dataclass(frozen=True)
class OfClass:
    """How images of one class fare: `error` is the share of them taken for another, `precision` the right share of
    what was taken for it (None: nothing was), in percent; `taken_for` the class that they are mostly taken for.
    """

    label: int
    images: int
    error: float
    top5_error: float
    precision: float | None
    taken_for: int | None

    def named(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the fields, in their order, with the names of classes instead of their labels."""
        taken_for = None if self.taken_for is None else names[self.taken_for]
        return vars(self) | {"label": names[self.label], "taken_for": taken_for}


def by_class(predictions: Predictions, classes: int) -> list[OfClass]:
    """Return the classes that have images, by label."""
    counts = predictions.confusion(classes)
    in_top = (predictions.top == predictions.labels[:, None]).any(1)
    missed = np.bincount(predictions.labels[~in_top], minlength=classes)
    found = []
    for label in np.flatnonzero(counts.sum(1)):
        row, hits, taken = counts[label].copy(), counts[label, label], counts[:, label].sum()
        images, row[label] = int(row.sum()), 0
        errors = 100 * (1 - hits / images), 100 * missed[label] / images
        precision = 100 * hits / taken if taken else None
        found.append(OfClass(int(label), images, *errors, precision, int(row.argmax()) if row.any() else None))
    return found


def pairs(predictions: Predictions, classes: int) -> list[tuple[int, int, int]]:
    """Return the confusions (class, taken for, images), the most frequent first."""
    counts = predictions.confusion(classes)
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[: np.count_nonzero(counts)]
    return [(int(i), int(j), int(counts[i, j])) for i, j in zip(*np.unravel_index(order, counts.shape), strict=True)]
