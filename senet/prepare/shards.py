"""WebDataset shards: tars of KEY.jpg and KEY.cls (a label in digits) of about equal size, in an order that mixes the
classes.

KEY is CLASS/STEM, with the dots and blanks of either as underscores. Beside each TO/train/train-000000.tar lies the
list that DALI wants (.idx, as wds2idx writes it), in TO also classes.txt (a class per line, in order of label) and the
list of all images. The same images give the same bytes, whether they come from folders, archives or other shards.
"""

from __future__ import annotations

import os
import secrets
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from senet.data.philox import Ints, permutation
from senet.data.pixels import kind
from senet.data.storage.index import LAYOUT, Index, Names, find_shards, index_file, key, listing, stamp
from senet.errors import UsageError
from senet.prepare.writing import Encoding, begin, clear, each, mark, part_of, progress, put, read, require_space

ENDINGS = {"jpeg": "jpg", "tiff": "tif"}  # where they are not called as the format
BLOCK, RECORD = 512, 10240  # bytes: tar counts in the first, and its end is filled up to the second


@dataclass(frozen=True)
class Packing:
    """How shards are made. Megabytes are of the images before any re-encoding."""

    shard_mb: int = 256
    seed: int = 0
    encoding: Encoding = field(default_factory=Encoding)

    def __post_init__(self) -> None:
        if self.shard_mb < 1:
            raise UsageError(f"--shard-mb {self.shard_mb}: must be at least 1")

    @property
    def plan(self) -> dict[str, Any]:
        return {"form": "shards", "shard_mb": self.shard_mb, "seed": self.seed, **self.encoding.plan}


def convert(source: Path, to: Path, packing: Packing, processes: int | None = None) -> list[str]:
    """Make shards in `to` of the image folders or shards in `source`; returns what was done, a sentence for
    each split.
    """
    if source.resolve() == to.resolve():
        raise UsageError(f"{to}: is what the shards are to be made of; name another folder")
    splits = [split for split in ("train", "val") if find_shards(source, split) or (source / split).is_dir()]
    if not splits:
        raise UsageError(f"{source}: neither images nor shards in it; {LAYOUT}")
    notes = []
    for split in splits:
        index = listing(source, split)
        plan = packing.plan | {"fingerprint": index.fingerprint}
        if begin(to, split, plan):
            notes.append(f"{to / split}: {len(index)} images are there already")
            continue
        try:
            mark(to, split, plan)
            count = write_shards(index, to, split, packing, processes)
            mark(to, split, plan, complete=True)
        except OSError as error:
            raise UsageError(f"{to}: cannot be written: {error.strerror or error}") from None
        notes.append(f"{to / split}: {len(index)} images in {count} shards")
    return notes


def write_shards(index: Index, to: Path, split: str, packing: Packing, processes: int | None = None) -> int:
    """Write `index` as shards of a `split`; returns their number. Finished ones are kept; all of them appear at once in
    the end.

    Raises UsageError for two images of the same key, and where the disk is too small.
    """
    _require_keys(index)
    sizes = _sizes(index, processes)
    needed = int((-(-sizes // BLOCK) * BLOCK).sum()) + 3 * BLOCK * len(index)
    count = max(1, -(-needed // (packing.shard_mb << 20)))
    parts = np.array_split(permutation(packing.seed, 0, len(index)), count)
    stems = [f"{split}-{number:06}" for number in range(count)]
    if not (to / split).is_dir():
        aside = to / f".{split}.unfinished"
        aside.mkdir(parents=True, exist_ok=True)
        missing = [number for number in range(count) if not (aside / f"{stems[number]}.tar").exists()]
        require_space(to, needed * len(missing) // count, packing.encoding)
        jobs = ((aside / stems[number], packing.encoding, part_of(index, parts[number])) for number in missing)
        with progress(f"packing {split}", sum(len(parts[number]) for number in missing)) as bar:
            for written in each(_write_shard, jobs, processes):
                bar.update(written)
        clear(aside)
        aside.rename(to / split)
    if len(find_shards(to, split)) != count:
        raise UsageError(
            f"{to / split}: holds other files than its {count} shards; remove this folder and run it again"
        )
    if index.classes:
        put(to / "classes.txt", "".join(f"{name}\n" for name in index.classes).encode())
    _listed(index, to, split, stems, parts).save(index_file(to, split), stamp(to, split))
    return count


def _require_keys(index: Index) -> None:
    seen: set[str] = set()
    for image in range(len(index)):
        name = key(index.names[image])
        if name in seen:
            raise UsageError(f"{index.path(image)}: another image would be {name} in a shard, too; rename one")
        seen.add(name)


def _sizes(index: Index, processes: int | None) -> Ints:
    """The bytes of each image: from the list of an archive, or asked of the file system by class."""
    if index.places is not None:
        return index.places[:, 2]
    sizes = np.zeros(len(index), np.int64)
    spans = np.array_split(np.arange(len(index)), -(-len(index) // 4096))
    with progress("measuring", len(index)) as bar:
        for first, found in each(_measure, ((int(span[0]), part_of(index, span)) for span in spans), processes):
            sizes[first : first + len(found)] = found
            bar.update(len(found))
    return sizes


def _measure(job: tuple[int, Index]) -> tuple[int, Ints]:
    first, images = job
    try:
        return first, np.array([os.stat(images.root / name).st_size for name in images.names], np.int64)
    except OSError as error:
        raise UsageError(
            f"{error.filename}: cannot be read ({error.strerror}); mend the source and run it again"
        ) from None


def _write_shard(job: tuple[Path, Encoding, Index]) -> int:
    """Write base.tar and, before it has its name, base.idx."""
    base, encoding, images = job
    part = base.with_name(f"{base.name}.{secrets.token_hex(4)}.part")
    lines = [f"v1.2 {len(images)}\n"]
    try:
        with part.open("wb") as file:
            for image in range(len(images)):
                content, name = encoding(read(images, image)), images.names[image]
                picture = f"{key(name)}.{_ending(content, name)}"
                lines.append(
                    f"{_add(file, picture, content)} {_add(file, f'{key(name)}.cls', b'%d' % images.labels[image])}\n"
                )
            file.write(bytes(2 * BLOCK))
            file.write(bytes(-file.tell() % RECORD))
        put(base.with_suffix(".idx"), "".join(lines).encode(errors="surrogateescape"))
        part.replace(base.with_suffix(".tar"))
    finally:
        part.unlink(missing_ok=True)
    return len(images)


def _add(file: BinaryIO, name: str, content: bytes) -> str:
    """Append a member; returns its entry for the .idx: ending, first byte, bytes, name."""
    info = tarfile.TarInfo(name)  # of user 0, time 0, mode 0644
    info.size = len(content)
    file.write(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
    start = file.tell()
    file.write(content)
    file.write(bytes(-len(content) % BLOCK))
    return f"{name.rpartition('.')[2]} {start} {len(content)} {name}"


def _ending(content: bytes, name: str) -> str:
    """By content, where it is known: what is called .JPEG is a PNG now and then."""
    form = kind(content)
    if form not in ("unknown", "empty"):
        return ENDINGS.get(form, form)
    return name.rpartition(".")[2].lower().replace("jpeg", "jpg")


def _listed(index: Index, to: Path, split: str, stems: list[str], parts: list[NDArray[Any]]) -> Index:
    """The list of the shards, in the order of `index`, from their .idx files."""
    names = [""] * len(index)
    places = np.zeros((len(index), 3), np.int64)
    for number, (stem, part) in enumerate(zip(stems, parts, strict=True)):
        file = to / split / f"{stem}.idx"
        try:
            lines = file.read_text("utf-8", "surrogateescape").split("\n")[1:-1]
            for image, line in zip(part, lines, strict=True):
                _, start, size, names[image], *_ = line.split(" ")
                places[image] = number, int(start), int(size)
        except (OSError, ValueError):
            raise UsageError(f"{file}: missing or damaged; remove {to / split} and run it again") from None
    return Index(
        to, Names.of(names), index.labels, index.classes, tuple(f"{split}/{stem}.tar" for stem in stems), places
    )
