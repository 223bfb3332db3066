"""Writing image folders, class by class."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np

from senet.data.philox import Ints
from senet.data.storage.folders import Folders, stamp_of
from senet.data.storage.index import Index, index_file
from senet.errors import UsageError
from senet.prepare.encoding import Encoding
from senet.prepare.plan import require_space
from senet.prepare.pool import each

Job = TypeVar("Job")


def write_folders(index: Index, to: Path, split: str, encoding: Encoding, processes: int | None = None) -> None:
    """Write an `index`, whose names are CLASS/FILE, as image folders below `to`. Raises UsageError as `fill`."""
    absent = np.array([not (to / split / name).is_dir() for name in index.classes])[index.labels]
    needed = int((-(-index.storage.sizes()[absent] // 4096) * 4096).sum())
    require_space(to, needed, encoding.short_side is not None)
    fill(index, to, split, lambda folder, images: (folder, encoding, index.subset(images)), _write_class, processes)


def fill(
    index: Index,
    to: Path,
    split: str,
    job: Callable[[Path, Ints], Job],
    task: Callable[[Job], int],
    processes: int | None = None,
) -> None:
    """Have `task` do the `job` of each class folder of `index` that is not there, then save the list of all.

    A job is made of a folder and its images; the task returns how many it wrote. A class folder must appear when it is
    complete: it is not written again. Raises UsageError if one holds something else.
    """
    base = to / split
    bounds = np.searchsorted(index.labels, np.arange(len(index.classes) + 1))
    parts = {base / name: np.arange(*bounds[label : label + 2]) for label, name in enumerate(index.classes)}
    missing = {folder: images for folder, images in parts.items() if not folder.is_dir()}
    jobs = (job(folder, images) for folder, images in missing.items())
    for _ in each(task, jobs, processes, f"writing {split}", sum(map(len, missing.values())), int):
        pass
    clear(base)
    for folder, images in parts.items():
        if len(os.listdir(folder)) != len(images):
            raise UsageError(
                f"{folder}: holds other files than its {len(images)} images; remove this folder and run it again"
            )
    written = Folders(base, index.storage.names, stamp_of(to, base, index.classes))
    Index(written, index.labels, index.classes).save(index_file(to, split))


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """Give a hidden folder to fill, which becomes `folder` in one step. Its name is its own, so that runs side by side
    do no harm.
    """
    part = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    part.mkdir(parents=True)
    try:
        yield part
        if not folder.exists():
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def clear(base: Path) -> None:
    """Remove what killed runs left unfinished."""
    for path in base.glob("*.tmp"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def read(index: Index, image: int) -> bytes:
    """Return the bytes of an image file. Raises UsageError if they cannot be read."""
    try:
        return index.storage.read(image)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(
            f"{index.storage.path(image)}: cannot be read ({reason or error}); mend the source and run it again"
        ) from None


def _write_class(job: tuple[Path, Encoding, Index]) -> int:
    folder, encoding, images = job
    with appearing(folder) as part:
        for image, name in enumerate(images.storage.names):
            (part / name.rpartition("/")[2]).write_bytes(encoding(read(images, image)))
    return len(images)
