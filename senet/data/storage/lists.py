"""A validation set in one folder, whose labels stand in a list beside it: Kaggle's ImageNet and Tiny-ImageNet."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from senet.data.storage.folders import Folders, class_folders, images_below, stamp_of
from senet.data.storage.index import Index, Names, split_folder
from senet.errors import UsageError
from senet.system.files import digest


class Listed(Folders):
    """A file for each image; classes are those of the training set."""

    @classmethod
    def holds(cls, root: Path, split: str) -> bool:
        return split == "val" and _list(root) is not None

    @classmethod
    def scan(cls, root: Path, split: str) -> Index:
        """List the images of the validation set. Raises UsageError for one that is not in the list."""
        base, train, file = split_folder(root, split), split_folder(root, "train"), _list(root)
        assert file is not None
        shown = read_list(file)
        classes = class_folders(root, train) if train.is_dir() else sorted(set(shown.values()))
        known = {name: label for label, name in enumerate(classes)}
        times: dict[str, int] = {}
        names = list(images_below(base, times))
        try:
            labels = [known[shown[Path(name).stem]] for name in names]
        except KeyError as error:
            raise UsageError(f"{base}: {error} is not in {file}, or not among the classes of {train}") from None
        stamp = {"classes": classes, "times": times, "list": digest(file, "sha256")[:16]}
        return Index(cls(base, Names.of(names), stamp), np.array(labels, np.int64), tuple(classes)).sorted()

    @classmethod
    def unchanged(cls, root: Path, split: str, stamp: Mapping[str, Any]) -> bool:
        file = _list(root)
        assert file is not None
        own = stamp_of(root, split_folder(root, split), stamp["times"]) | {"classes": stamp["classes"]}
        train = split_folder(root, "train")
        same = not train.is_dir() or class_folders(root, train) == stamp["classes"]
        return same and own | {"list": digest(file, "sha256")[:16]} == stamp


def read_list(file: Path) -> dict[str, str]:
    """Return the class of each image, by its name without ending, from a table of names and what they show: separated
    by commas or tabs; only the first word of the second column counts (boxes follow). Raises UsageError.
    """
    try:
        with file.open(newline="") as stream:
            rows = [row for row in csv.reader(stream, delimiter="\t" if file.suffix == ".txt" else ",") if row]
        return {Path(row[0]).stem: row[1].split()[0] for row in rows if row[0] != "ImageId"}
    except (OSError, ValueError, IndexError) as error:
        raise UsageError(f"{file}: cannot be read ({error}); give the file as published") from None


def _list(root: Path) -> Path | None:
    base = split_folder(root, "val")
    known = (base / "val_annotations.txt", root / "LOC_val_solution.csv", root.parent / "LOC_val_solution.csv")
    return next((file for file in known if file.is_file()), None)
