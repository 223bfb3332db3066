"""WebDataset shards: tars of KEY.jpg and KEY.cls (a label in digits) of about equal size, in an order that mixes the
classes.

KEY is CLASS/STEM, with the dots and blanks of either as underscores. Beside each TO/train/train-000000.tar lies the
list that DALI wants (.idx, as wds2idx writes it), and SHA256SUMS; in TO also classes.txt (a class per line, in order of
label) and the list of all images. The same images give the same bytes, whether they come from folders, archives or
other shards.

Decoded images are KEY.ppm: whatever reads images reads those too, PIL, OpenCV, DALI and webdataset among them, while
.npy would need code of its own everywhere. Tar counts in 512 bytes and their head takes 64, so pixels are aligned.
"""

import os
import sys
import tarfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from senet.data.philox import Ints, permutation
from senet.data.pixels import kind, stored_size
from senet.data.storage.archives import stamp_of
from senet.data.storage.index import Index, Names, index_file, key, write_classes
from senet.data.storage.tars import HEAD, Tars
from senet.errors import UsageError
from senet.prepare.encoding import Encoding
from senet.prepare.folders import clear, read
from senet.prepare.plan import require_space
from senet.prepare.pool import count, each
from senet.system import files

ENDINGS = {"jpeg": "jpg", "tiff": "tif"}  # of formats whose files are not called after them
SAMPLE = 512  # images, to tell how large all are
BLOCK, RECORD = 512, 10240  # bytes: tar counts in the first, and its end is filled up to the second


@dataclass(frozen=True)
class Packing:
    """How shards are made. Megabytes are of the images before they are made smaller."""

    shard_mb: int = 256
    seed: int = 0
    encoding: Encoding = field(default_factory=Encoding)

    def __post_init__(self) -> None:
        if self.shard_mb < 1:
            raise UsageError(f"--shard-mb {self.shard_mb}: must be at least 1")


def write_shards(index: Index, to: Path, split: str, packing: Packing, processes: int | None = None) -> int:
    """Write `index` as shards of a `split`; returns their number. Finished ones are kept; all of them appear at once in
    the end.

    Raises UsageError for two images of the same key, and if the disk is too small.
    """
    _require_keys(index)
    sizes = _sizes(index, processes)
    encoding = packing.encoding.of(split)
    needed = int((-(-sizes // BLOCK) * BLOCK).sum()) + 3 * BLOCK * len(index)
    if encoding.decoded:
        needed = round((1 - encoding.fraction) * needed + encoding.fraction * _pixels(index, encoding))
    shards = max(1, -(-needed // (packing.shard_mb << 20)))
    parts = np.array_split(index.storage.packing_order(packing.seed), shards)
    stems = [f"{split}-{number:06}" for number in range(shards)]
    if not (to / split).is_dir():
        aside = to / f".{split}.unfinished"
        aside.mkdir(parents=True, exist_ok=True)
        missing = [number for number in range(shards) if not (aside / f"{stems[number]}.tar").exists()]
        if missing and encoding.decoded:
            print(f"{to / split}: about {needed * len(missing) / shards / 1e9:.3g} GB to write", file=sys.stderr)
        require_space(to, needed * len(missing) // shards, encoding.shrinks)
        jobs = ((aside / stems[number], encoding, index.subset(parts[number])) for number in missing)
        images = sum(len(parts[number]) for number in missing)
        for _ in each(_write_shard, jobs, processes, f"packing {split}", images):
            pass
        clear(aside)
        _join_checksums(aside)
        aside.rename(to / split)
    if len(Tars.find(to, split)) != shards:
        raise UsageError(f"{to / split}: holds other files than its {shards} shards; remove this folder and rerun")
    if index.classes:
        write_classes(to, index.classes)
    _listed(index, to, split, stems, parts).save(index_file(to, split))
    return shards


def _require_keys(index: Index) -> None:
    seen: set[str] = set()
    for image, name in enumerate(map(key, index.storage.names)):
        if name in seen:
            raise UsageError(f"{index.storage.path(image)}: another image would be {name} in a shard, too; rename one")
        seen.add(name)


def _sizes(index: Index, processes: int | None) -> Ints:
    sizes = np.zeros(len(index), np.int64)
    spans = np.array_split(np.arange(len(index)), -(-len(index) // 4096))
    jobs = ((int(span[0]), index.subset(span)) for span in spans)
    measured = each(_measure, jobs, processes, "measuring", len(index))
    for first, part in measured:
        sizes[first : first + len(part)] = part
    return sizes


def _pixels(index: Index, encoding: Encoding) -> int:
    """Return about how many bytes the shards of all images take decoded: from a sample of them, alike in all forms."""
    sample = permutation(0, 0, len(index))[:SAMPLE]
    found = [encoding.size(read(index, int(image))) for image in sample]
    return len(index) * (sum(found) // len(found) + 4 * BLOCK)


def _join_checksums(folder: Path) -> None:
    """Add the shards' checksums to SHA256SUMS, for sha256sum -c, and remove their files."""
    sums, parts = folder / "SHA256SUMS", list(folder.glob("*.sha256"))
    lines = sums.read_text().splitlines() if sums.exists() else []
    by_name = {line.split()[1]: line for line in [*lines, *(part.read_text().strip() for part in parts)]}
    content = "".join(f"{by_name[name]}\n" for name in sorted(by_name))
    files.replace(sums, lambda target: target.write_text(content), shared=True)
    for part in parts:
        part.unlink()


def _measure(job: tuple[int, Index]) -> tuple[int, Ints]:
    first, images = job
    try:
        sizes = images.storage.sizes()
    except OSError as error:
        raise UsageError(f"{error.filename}: cannot be read ({error.strerror}); mend it and run this again") from None
    count(len(images))
    return first, sizes


def _write_shard(job: tuple[Path, Encoding, Index]) -> None:
    """Write base.tar and, before it has its name, base.idx and base.sha256."""
    base, encoding, images = job
    lines = [f"v1.2 {len(images)}\n"]

    def fill(part: Path) -> None:
        with part.open("wb") as file:
            for image, name in enumerate(images.storage.names):
                content = encoding.part(image / len(images))(read(images, image))
                picture, label = f"{key(name)}.{_ending(content, name)}", b"%d" % images.labels[image]
                lines.append(f"{_add(file, picture, content)} {_add(file, f'{key(name)}.cls', label)}\n")
                count()
            file.write(bytes(2 * BLOCK))
            file.write(bytes(-file.tell() % RECORD))
        checksum = f"{files.digest(part, 'sha256')}  {base.name}.tar\n".encode()
        for ending, content in ((".idx", os.fsencode("".join(lines))), (".sha256", checksum)):
            file_of = base.with_suffix(ending)
            files.replace(file_of, partial(Path.write_bytes, data=content), shared=True, durable=False)

    files.replace(base.with_suffix(".tar"), fill, shared=True)


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
    """Return the ending of an image by its content, if that is known: what is called .JPEG is a PNG now and then."""
    form = kind(content)
    if form not in ("unknown", "empty"):
        return ENDINGS.get(form, form)
    return name.rpartition(".")[2].lower().replace("jpeg", "jpg")


def _listed(index: Index, to: Path, split: str, stems: list[str], parts: list[NDArray[Any]]) -> Index:
    """Return the list of the shards, in the order of `index`, from their .idx files."""
    names = [""] * len(index)
    spans, shapes = np.zeros((len(index), 3), np.int64), np.zeros((len(index), 2), np.int32)
    for number, (stem, part) in enumerate(zip(stems, parts, strict=True)):
        file = to / split / f"{stem}.idx"
        try:
            lines = os.fsdecode(file.read_bytes()).split("\n")[1:-1]
            with file.with_suffix(".tar").open("rb", buffering=0) as shard:
                for image, line in zip(part, lines, strict=True):
                    ending, start, size, names[image], *_ = line.split(" ")
                    spans[image] = number, int(start), int(size)
                    if ending == "ppm":
                        shapes[image] = stored_size(os.pread(shard.fileno(), HEAD, int(start)), int(size))
        except (OSError, ValueError):
            raise UsageError(f"{file}: missing or damaged; remove {to / split} and run it again") from None
    stamp = stamp_of(to, [to / split / f"{stem}.tar" for stem in stems])
    return Index(Tars(to, Names.of(names), stamp, {"spans": spans, "shapes": shapes}), index.labels, index.classes)
