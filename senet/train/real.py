"""ImageNet-ReaL (Beyer et al. 2020): several right labels an image, or none at all."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from senet.data.imagenet import classes as imagenet_classes
from senet.errors import UsageError
from senet.train.predictions import Predictions

Labels = list[set[int]]  # of each of ImageNet's validation images, in order of their file names


def read(file: Path) -> Labels:
    """Return the labels in real.json. Raises UsageError if it cannot be understood."""
    try:
        return [set(map(int, labels)) for labels in json.loads(file.read_text())]
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"--real {file}: not a JSON list with a list of labels for each image ({error})") from None


def real_errors(
    predictions: Predictions, name: Callable[[int], str], folders: Sequence[str], lists: Labels
) -> dict[str, float]:
    """Return `real_top1_error` in percent and the `real_images` that have a label in `lists`.

    The numbers in file names say which image is which; those with other names are not counted. Classes are `folders`,
    wnids; if they are no wnids, labels are taken to be ImageNet's. Raises UsageError if no image has a label.
    """
    numbers = {wnid: number for number, wnid in enumerate(imagenet_classes())}
    number_of = [numbers.get(folder, label) for label, folder in enumerate(folders)] or range(len(numbers))
    right = counted = 0
    for image, top in zip(predictions.images, predictions.top[:, 0], strict=True):
        found = re.search(r"ILSVRC2012_val_(\d{8})", name(int(image)))
        labels = lists[int(found[1]) - 1] if found and 0 < int(found[1]) <= len(lists) else set()
        counted += bool(labels)
        right += int(number_of[top]) in labels
    if not counted:
        named = "which must be called ILSVRC2012_val_NNNNNNNN"
        raise UsageError(f"--real labels none of the images, {named}; give ImageNet's set")
    return {"real_top1_error": 100 * (1 - right / counted), "real_images": counted}
