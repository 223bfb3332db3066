"""Writing image folders, class by class."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np

from senet.data.philox import Ints
from senet.data.storage.folders import Folders, images_below
from senet.data.storage.index import Index, Names, index_file, key, write_classes
from senet.errors import UsageError
from senet.prepare.encoding import Encoding
from senet.prepare.plan import require_space
from senet.prepare.pool import count, each

Job = TypeVar("Job")


def write_folders(index: Index, to: Path, split: str, encoding: Encoding, processes: int | None = None) -> int:
    """Write the images of a split as image folders below `to`; returns the number of classes. Raises UsageError as
    `fill`, and if the disk is too small.

    Classes without a name are called by their numbers. Names in shards that begin anew in each one make sub-folders.
    """
    named = tuple(name.replace("/", "_").lstrip(".") for name in index.classes)
    classes = named if len(set(named)) == len(named) > 0 else tuple(f"{n:05}" for n in range(index.labels.max() + 1))
    absent = np.array([not (to / split / name).is_dir() for name in classes])[index.labels]
    needed = int((-(-index.storage.sizes()[absent] // 4096) * 4096).sum())
    require_space(to, needed, encoding.short_side is not None)
    starts = [{name, key(f"{name}.")} for name in classes]  # what a name may begin with, to be left out

    def target(name: str, label: int) -> str:
        first, _, rest = name.partition("/")
        return f"{classes[label]}/{rest if rest and first in starts[label] else name}"

    names = Names.of(map(target, index.storage.names, index.labels))
    written = Index(Folders(to / split, names, {}), index.labels, classes)

    def job(folder: Path, images: Ints) -> tuple[Path, Encoding, Index, Names]:
        return folder, encoding, index.subset(images), names.subset(images)

    write_classes(to, classes)
    fill(written, to, split, job, _write_class, processes)
    return len(classes)


def fill(
    index: Index,
    to: Path,
    split: str,
    job: Callable[[Path, Ints], Job],
    task: Callable[[Job], object],
    processes: int | None = None,
) -> None:
    """Have `task` do the `job` of each class folder of `index` that is not there, then save the list of all.

    A job is made of a folder and its images, which the task counts. A class folder must appear when it is complete: it
    is not written again. Raises UsageError if one holds something else.
    """
    base = to / split
    bounds = np.searchsorted(index.labels, np.arange(len(index.classes) + 1))
    parts = {base / name: np.arange(*bounds[label : label + 2]) for label, name in enumerate(index.classes)}
    missing = {folder: images for folder, images in parts.items() if not folder.is_dir()}
    jobs = (job(folder, images) for folder, images in missing.items())
    for _ in each(task, jobs, processes, f"writing {split}", sum(map(len, missing.values()))):
        pass
    clear(base)
    times: dict[str, int] = {}
    for folder, images in parts.items():
        if sum(1 for _ in images_below(base, times, folder.name)) != len(images):
            raise UsageError(
                f"{folder}: holds other files than its {len(images)} images; remove this folder and run it again"
            )
    storage = Folders(base, index.storage.names, {"classes": list(index.classes), "times": times})
    Index(storage, index.labels, index.classes).save(index_file(to, split))


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


def _write_class(job: tuple[Path, Encoding, Index, Names]) -> None:
    folder, encoding, images, names = job
    with appearing(folder) as part:
        for image, name in enumerate(names):
            target = part / name.partition("/")[2]
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                raise UsageError(f"{images.storage.path(image)}: another image would be {name}, too; rename one")
            target.write_bytes(encoding(read(images, image)))
            count()
