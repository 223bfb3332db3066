"""Parquet as Hugging Face keeps image sets: a column of structs of `bytes` and `path`, or of bytes, and one of labels.

To read one image is to read its row group, tens of megabytes of a large set: small sets are trained on as they are,
large ones converted first, which reads every row group once. Needs pyarrow.
"""

import json
import logging
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from senet.data.philox import Ints, permutation
from senet.data.storage.archives import Archives, Member, as_label
from senet.data.storage.folders import ENDINGS
from senet.data.storage.index import Index
from senet.errors import UsageError

IMAGES = ("image", "img", "jpg", "png", "webp")  # columns that are taken if there are several
LABELS = ("label", "labels", "fine_label", "cls", "target", "class")
LARGE = 2 << 30  # bytes of a set
log = logging.getLogger(__name__)


class Parquet(Archives):
    """Images in row groups: `spans` [n, 3] has the position of their file among those of the stamp, row group, row."""

    expected = "a column of images and one of labels"

    @classmethod
    def find(cls, root: Path, split: str) -> list[Path]:
        """Return the files of a split, in ROOT or up to two folders down: train-00000-of-00294.parquet."""
        paths = sorted(path for depth in ("", "[!.]*/", "[!.]*/[!.]*/") for path in root.glob(f"{depth}[!.]*.parquet"))
        for word in ("train",) if split == "train" else ("val", "test"):
            if found := [path for path in paths if path.name.startswith(word) or path.parent.name.startswith(word)]:
                return found
        return []

    @classmethod
    def members(cls, path: Path) -> list[Member]:
        """List the rows: a member's `start` is the row group, its `size` the row in there.

        Raises UsageError for rows without a label, for files that hold no images, and without pyarrow.
        """
        file, content, label = _open(path)
        image, found = content.partition(".")[0], []
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, [f"{image}.path", label])
            structs = table.column(image).to_pylist() if image in table.column_names else [None] * len(table)
            for row, (value, struct) in enumerate(zip(table.column(label).to_pylist(), structs, strict=True)):
                try:
                    found.append(Member(as_label(value), Path((struct or {}).get("path") or "").name, group, row))
                except (ValueError, TypeError):
                    what = f"row {row} of row group {group} has {value!r} for {label}"
                    raise UsageError(f"{path}: {what}; a number or a name is a label") from None
        names = {member.name for member in found}
        if len(names) == len(found) and all(name.lower().endswith(ENDINGS) for name in names):
            return found
        return [member._replace(name=f"{member.start:04}-{member.size:06}.jpg") for member in found]

    @classmethod
    def scan(cls, root: Path, split: str) -> Index:
        index, paths = super().scan(root, split), cls.find(root, split)
        if sum(path.stat().st_size for path in paths) > LARGE:
            log.warning("%s: Parquet is read slowly; python -m launch.prepare shards %s TO makes shards", root, root)
        return replace(index, classes=index.classes or _class_names(paths[0]))

    def read(self, image: int) -> bytes:
        _, group, row = self.columns["spans"][image].tolist()
        content: bytes | None = _group(str(self.file(image)), group)[row].as_py()
        if content is None:
            raise ValueError("its row has no bytes, at most a path on another machine")
        return content

    def sizes(self) -> Ints:
        """Return the mean bytes of the images in each one's row group: its own are not known before it is read."""
        files, groups, _ = self.columns["spans"].T
        means = [_means(Path(file)) for file in self.files]
        return np.array([means[file][group] for file, group in zip(files, groups, strict=True)], np.int64)

    def packing_order(self, seed: int) -> Ints:
        """Return the images row group by row group, these in random order: each is read once then."""
        spans = self.columns["spans"]
        _, groups = np.unique(spans[:, :2], axis=0, return_inverse=True)
        groups = groups.reshape(-1)
        return np.lexsort((spans[:, 2], permutation(seed, 0, int(groups.max()) + 1)[groups]))


def _open(path: Path) -> tuple[Any, str, str]:
    """Return a file, the path of its column of bytes, and the name of its column of labels."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise UsageError(f"{path}: reading Parquet needs pyarrow: pip install pyarrow") from None
    try:
        file = parquet.ParquetFile(path)
    except (OSError, ArrowException) as error:
        raise UsageError(f"{path}: cannot be read ({error}); fetch it again") from None
    schema = file.schema_arrow
    of_bytes = {part.path.partition(".")[0]: part.path for part in file.schema if _holds_bytes(part)}
    image = next((name for name in (*IMAGES, *of_bytes) if name in of_bytes), None)
    label = next((name for name in LABELS if name in schema.names), None)
    if image is None or label is None:
        raise UsageError(
            f"{path}: its columns are {', '.join(schema.names)}; expected one of bytes, as image, and one of labels: "
            f"{', '.join(LABELS)}"
        )
    return file, of_bytes[image], label


def _holds_bytes(column: Any) -> bool:
    """Tell whether a column of a Parquet schema is one of images: bytes that are no text."""
    plain = column.physical_type == "BYTE_ARRAY" and column.logical_type.type == "NONE"
    return bool(plain and column.path.count(".") < 2)


def _class_names(path: Path) -> tuple[str, ...]:
    """Return the names that Hugging Face's `datasets` writes into the file; none without them."""
    file, _, label = _open(path)
    try:
        facts = json.loads(file.schema_arrow.metadata[b"huggingface"])
        return tuple(facts["info"]["features"][label]["names"])
    except (KeyError, TypeError, ValueError):
        return ()


@lru_cache(maxsize=8)
def _group(path: str, group: int) -> Any:
    file, content, _ = _open(Path(path))
    image, _, inner = content.partition(".")
    column = file.read_row_group(group, [content]).column(image).combine_chunks()
    return column.field(inner) if inner else column


def _means(path: Path) -> list[int]:
    file, content, _ = _open(path)
    means = []
    for group in (file.metadata.row_group(number) for number in range(file.num_row_groups)):
        columns = (group.column(number) for number in range(group.num_columns))
        size = next(one.total_uncompressed_size for one in columns if one.path_in_schema == content)
        means.append(size // max(1, group.num_rows))
    return means
