"""Writing image folders, class by class."""

import secrets
import shutil
from pathlib import Path

import numpy as np

from senet.data.storage.folders import Folders, images_below
from senet.data.storage.index import Index, Names, index_file, key, write_classes
from senet.errors import UsageError
from senet.prepare.encoding import Encoding
from senet.prepare.plan import require_space
from senet.prepare.pool import count, each


def write_folders(index: Index, to: Path, split: str, encoding: Encoding, processes: int | None = None) -> int:
    """Write the images of a split as image folders below `to`, and the list of them; returns the number of classes.

    Classes without a name are called by their numbers. Names in shards that begin anew in each one make sub-folders.
    A class folder appears when it is complete, and is not written again. Raises UsageError if one holds something else,
    and if the disk is too small.
    """
    named = tuple(name.replace("/", "_").lstrip(".") for name in index.classes)
    classes = named if len(set(named)) == len(named) > 0 else tuple(f"{n:05}" for n in range(index.labels.max() + 1))
    base, starts = to / split, [{name, key(f"{name}.")} for name in classes]  # what a name may begin with: left out

    def target(name: str, label: int) -> str:
        first, _, rest = name.partition("/")
        return f"{classes[label]}/{rest if rest and first in starts[label] else name}"

    names = Names.of(map(target, index.storage.names, index.labels))
    bounds = np.searchsorted(index.labels, np.arange(len(classes) + 1))
    parts = {base / name: np.arange(*bounds[label : label + 2]) for label, name in enumerate(classes)}
    missing = {folder: images for folder, images in parts.items() if not folder.is_dir()}
    absent = np.concatenate([np.zeros(0, np.int64), *missing.values()])
    require_space(to, int((-(-index.storage.sizes()[absent] // 4096) * 4096).sum()), encoding.shrinks)
    write_classes(to, classes)
    jobs = ((folder, encoding, index.subset(images), names.subset(images)) for folder, images in missing.items())
    for _ in each(_write_class, jobs, processes, f"writing {split}", len(absent)):
        pass
    clear(base)
    times: dict[str, int] = {}
    for folder, images in parts.items():
        if sum(1 for _ in images_below(base, times, folder.name)) != len(images):
            raise UsageError(f"{folder}: holds other files than its {len(images)} images; remove this folder and rerun")
    storage = Folders(base, names, {"classes": list(classes), "times": times})
    Index(storage, index.labels, classes).save(index_file(to, split))
    return len(classes)


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
        path, reason = index.storage.path(image), getattr(error, "strerror", None) or error
        raise UsageError(f"{path}: cannot be read ({reason}); mend the source and run it again") from None


def _write_class(job: tuple[Path, Encoding, Index, Names]) -> None:
    """Fill a hidden folder of a name of its own, for others may do the same; then let it be that of the class."""
    folder, encoding, images, names = job
    part = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    part.mkdir(parents=True)
    try:
        for image, name in enumerate(names):
            target = part / name.partition("/")[2]
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                raise UsageError(f"{images.storage.path(image)}: another image would be {name}, too; rename one")
            target.write_bytes(encoding(read(images, image)))
            count()
        if not folder.exists():
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
