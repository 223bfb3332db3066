"""What the last validation of a run leaves to its trackers: errors by class, confusion, examples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from senet.config import Data
from senet.data.imagenet import named
from senet.data.loader import Batch, ValLoader
from senet.data.sheet import pictures
from senet.distributed import World
from senet.system.run_folder import RunFolder
from senet.track.tracker import Results, Table
from senet.train.predictions import Predictions, by_class, pairs

EXAMPLES = 32  # at most, spread evenly over the validation set
SHOWN = 3  # classes held most likely, of an example
MATRIX = 100  # classes, at most, of a whole confusion matrix: W&B's charts draw no more than 10,000 rows
PAIRS = 1000  # confusions of more classes, the most frequent ones


class Sample:
    """What a net says of images in one validation, and some pictures of them. `keep` is for `evaluate`."""

    def __init__(self, data: Data, images: int) -> None:
        """`images` of the validation set."""
        self.data, self.every = data, max(1, -(-images // EXAMPLES))
        self._parts: list[Predictions] = []
        self._pictures: dict[int, Image.Image] = {}  # by number of the image
        self._told: list[tuple[Predictions, dict[int, Image.Image]]] = []

    def keep(self, batch: Batch, logits: Tensor) -> None:
        assert batch.keys is not None
        self._parts.append(Predictions.of(batch.keys, batch.labels.cpu().numpy(), logits.log_softmax(1).cpu()))
        rows = np.flatnonzero(batch.keys % self.every == 0)
        if len(rows):
            shown = pictures(batch.images[rows.tolist()], self.data)
            self._pictures.update(zip(batch.keys[rows].tolist(), shown, strict=True))

    def gather(self, world: World) -> None:
        """Get what all ranks have kept. All of them call it."""
        self._told = world.all_gather_object((Predictions.joined(self._parts), self._pictures))

    def results(self, position: Mapping[str, Any], loader: ValLoader, folder: RunFolder) -> Results:
        """Write the examples into a run folder, and return the tables. Raises OSError."""
        predictions = Predictions.joined([part for part, _ in self._told])
        count, names = self.data.classes, named(loader.classes, self.data.classes)
        matrix = count <= MATRIX
        if matrix:
            counts = predictions.confusion(count)
            confused = [(actual, said, int(counts[actual, said])) for actual, said in np.ndindex(count, count)]
        else:
            confused = pairs(predictions, count)[:PAIRS]
        classes = [
            [round(value, 3) if isinstance(value, float) else value for value in row.named(names).values()]
            for row in by_class(predictions, count)
        ]
        return Results(
            position,
            Table(["class", "images", "top-1 error %", "top-5 error %", "precision %", "mostly taken for"], classes),
            Table(["class", "taken for", "images"], [[names[i], names[j], images] for i, j, images in confused]),
            matrix,
            *self._examples(predictions, loader, names, folder),
        )

    def _examples(
        self, predictions: Predictions, loader: ValLoader, names: tuple[str, ...], folder: RunFolder
    ) -> tuple[Table, list[Image.Image]]:
        shown = {number: picture for _, part in self._told for number, picture in part.items()}
        chosen = predictions.take(np.isin(predictions.images, list(shown)))
        numbers = chosen.images.tolist()
        folder.examples.mkdir(exist_ok=True)
        rows: list[list[Any]] = []
        for number, said in zip(numbers, chosen.rows(loader.name, names), strict=True):
            path = folder.examples / f"{number:08d}.png"
            shown[number].save(path)
            top = [value for pair in said["top"][:SHOWN] for value in pair]
            rows.append([str(path.resolve()), Path(said["image"]).name, said["label"], said["of_label"], *top])
        places = range(1, min(SHOWN, chosen.top.shape[1]) + 1)
        columns = [word for place in places for word in (f"class {place}", f"probability {place}")]
        table = Table(["picture", "image", "label", "probability of label", *columns], rows)
        return table, [shown[number] for number in numbers]
