"""Loaders against each other on the same JPEGs: images per second and per CPU-second, and host memory.

Contestants: torchvision's ImageFolder with torch's DataLoader (as torchvision's references have it), timm's loader,
webdataset with torchvision's transforms, DALI's own file reader with its own random crop (as NVIDIA's examples have
it), this project's backends on the same files and on shards of them, smaller (256 pixels) or decoded, and the bare
resize of pre-cut crops, the limit of decoded shards. All but that and what is called "bytes", which is what a GPU is
sent, give normalised float32. Each runs in a process of its own on the same cores; rounds are interleaved, so that a
slow minute of the machine meets all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from senet.bench.rows import Fact, Row
from senet.data.storage.find import listing
from senet.prepare.convert import write
from senet.prepare.encoding import Encoding
from senet.prepare.shards import Packing
from senet.system.processes import cpu_seconds, family
from senet.system.timing import Spread

CROP = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WARM = 2  # epochs before those that count
SECONDS = 2.0  # of those, at least

Epoch = Callable[[], Iterator[int]]  # goes once through the images and yields how many are in each batch


def add_flags(parser: argparse.ArgumentParser) -> None:
    drawn = "train/CLASS/*.JPEG (default: drawn, 500 x 375, 90 kB each)"
    parser.add_argument("--data", type=Path, metavar="DIR", help=drawn)
    parser.add_argument("--images", type=int, default=1024, metavar="N", help="drawn without --data (default 1024)")
    threads = "threads or worker processes, and cores"
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], metavar="N", help=threads)
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="images in a batch (default 64)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="of each contestant (default 3)")
    names = list(CONTESTANTS)
    parser.add_argument("--contestants", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    large = "so many of the drawn images have 20 megapixels (to see what memory they take)"
    parser.add_argument("--large", type=int, default=0, metavar="N", help=large)
    parser.add_argument("--one", nargs=2, metavar=("NAME", "THREADS"), help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> Iterator[Row]:
    """Measure all contestants in rounds, and yield a row for each after each round."""
    if args.one:
        yield _measure(args.one[0], args.data, int(args.one[1]), args.batch)
        return
    with tempfile.TemporaryDirectory() as temporary:
        files = args.data or draw_photos(Path(temporary) / "photos", args.images, args.large)
        forms = _forms(files, Path(temporary), {CONTESTANTS[name].form for name in args.contestants})
        found: dict[tuple[str, int], list[Row]] = {}
        for _ in range(args.rounds):
            for threads in args.threads:
                for name in args.contestants:
                    found.setdefault((name, threads), []).append(
                        _start(name, forms[CONTESTANTS[name].form], threads, args.batch)
                    )
            yield from (_joined(name, threads, found) for name, threads in found)


def _joined(name: str, threads: int, found: dict[tuple[str, int], list[Row]]) -> Row:
    """Join the rounds of a contestant; ratios to peers come from pairs of the same round."""
    rounds = found[name, threads]
    how = f"{threads} thread{'s' * (threads > 1)}"
    if failures := [row.failure for row in rounds if row.failure]:
        return Row(name, how, failure=failures[0])

    def values(row: Row) -> float:
        return row.value.median if row.value else 0.0

    facts: dict[str, Fact] = {
        fact: Spread.of([row.number(fact) or 0.0 for row in rounds]) for fact in ("images/s", "MiB", "MiB grown")
    }
    for peer in ("torchvision", "dali-reader", "ours-dali", "bare-resize"):
        theirs = found.get((peer, threads), [])
        if peer != name and theirs and not any(row.failure for row in theirs):
            pairs = zip(rounds, theirs, strict=False)
            facts[f"x {peer}"] = Spread.of([values(own) / values(other) for own, other in pairs])
    return Row(name, how, Spread.of([values(row) for row in rounds]), "images/CPU-s", facts)


def _start(name: str, data: Path, threads: int, batch: int) -> Row:
    """Measure one contestant in a fresh process on `threads` cores."""
    command = [sys.executable, "-m", "launch.bench", "loader", "--data", str(data), "--batch", str(batch)]
    command += ["--one", name, str(threads), "--json", "-"]
    cores = sorted(os.sched_getaffinity(0))[:threads]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, preexec_fn=lambda: os.sched_setaffinity(0, cores)
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        return Row(name, failure=last[0][:200])
    return Row.from_dict(json.loads(done.stdout.splitlines()[-1])[0])


def _measure(name: str, data: Path, threads: int, batch: int) -> Row:
    epoch = CONTESTANTS[name].make(data, threads, batch)
    for _ in range(WARM):
        sum(epoch())
    before, began, cpu, images = _memory(), time.monotonic(), cpu_seconds(), 0
    while time.monotonic() - began < SECONDS:
        images += sum(epoch())
    seconds, cpu, after = time.monotonic() - began, cpu_seconds() - cpu, _memory()
    facts: dict[str, Fact] = {"images/s": images / seconds, "MiB": after, "MiB grown": after - before}
    return Row(name, value=Spread.of([images / cpu]), unit="images/CPU-s", facts=facts)


def _forms(files: Path, folder: Path, wanted: set[str]) -> dict[str, Path]:
    """Return the folder of each form of the images that is wanted, made of `files` if it has to be."""
    forms, made = {"files": files}, {name: how for name, how in FORMS.items() if name in wanted}
    for name, encoding in made.items():
        write(listing(files, "train"), folder / name, "train", Packing(shard_mb=16, encoding=encoding), {})
        forms[name] = folder / name
    return forms


def _memory() -> float:
    """MiB in use by this process and all its descendants, shared pages counted once (proportional set size)."""
    kilobytes = 0
    for number in family(os.getpid()):
        lines = Path(f"/proc/{number}/smaps_rollup").read_text().splitlines()
        kilobytes += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kilobytes / 1024


def draw_photos(root: Path, count: int, large: int = 0) -> Path:
    """Draw `count` JPEGs of ten classes with detail at all scales, `large` of them of 20 megapixels; return `root`."""
    generator = np.random.default_rng(0)
    for number in range(count):
        folder = root / f"train/class{number % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        width, height = (5472, 3648) if number < large else (500, 375)
        picture = np.zeros((height, width, 3), np.float32)
        for cells in (4, 16, 64, 256):
            noise = generator.integers(0, 256, (cells * height // width + 1, cells, 3), dtype=np.uint8)
            picture += (
                np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC), np.float32)
                / cells**0.7
            )
        picture *= 255 / picture.max()
        Image.fromarray(picture.astype(np.uint8)).save(folder / f"{number:06}.JPEG", quality=95)
    return root


# ---------------------------------------------------------------------------------------------------------- contestants


def _random_crop() -> Any:
    from torchvision import transforms

    steps = [transforms.RandomResizedCrop(CROP), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    return transforms.Compose([*steps, transforms.Normalize(MEAN, STD)])


def _torchvision(data: Path, threads: int, batch: int) -> Epoch:
    from torch.utils.data import DataLoader
    from torchvision import datasets

    images = datasets.ImageFolder(str(data / "train"), _random_crop())
    loader = DataLoader(images, batch, shuffle=True, num_workers=threads, drop_last=True, persistent_workers=True)
    return lambda: (len(labels) for _, labels in loader)


def _dali_reader(data: Path, threads: int, batch: int) -> Epoch:
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.plugin.pytorch import DALIClassificationIterator, LastBatchPolicy

    @pipeline_def(batch_size=batch, num_threads=threads, device_id=None, seed=0)
    def reader() -> Any:
        content, label = fn.readers.file(
            file_root=str(data / "train"), shuffle_after_epoch=True, pad_last_batch=True, name="reader"
        )
        image = fn.decoders.image_random_crop(content, random_area=[0.08, 1.0], random_aspect_ratio=[0.75, 4 / 3])
        image = fn.resize(image, size=(CROP, CROP))
        mean, std = [255 * part for part in MEAN], [255 * part for part in STD]
        mirror = fn.random.coin_flip()
        return fn.crop_mirror_normalize(
            image, dtype=types.FLOAT, output_layout="CHW", mean=mean, std=std, mirror=mirror
        ), label

    batches = DALIClassificationIterator(
        [reader()], reader_name="reader", last_batch_policy=LastBatchPolicy.DROP, auto_reset=True
    )
    return lambda: (len(part[0]["label"]) for part in batches)


def _timm(data: Path, threads: int, batch: int) -> Epoch:
    from timm.data import ImageDataset, create_loader

    images = ImageDataset(str(data / "train"))
    settings: dict[str, Any] = {"num_workers": threads, "use_prefetcher": False, "color_jitter": None}
    loader = create_loader(images, (3, CROP, CROP), batch, is_training=True, mean=MEAN, std=STD, **settings)
    return lambda: (len(labels) for _, labels in loader)


def _webdataset(data: Path, threads: int, batch: int) -> Epoch:
    import webdataset

    paths = [str(path) for path in sorted((data / "train").glob("*.tar"))]
    images = webdataset.WebDataset(paths, shardshuffle=len(paths)).shuffle(1000).decode("pil")
    images = images.to_tuple("jpg;jpeg;png", "cls").map_tuple(_random_crop(), int).batched(batch)
    loader = webdataset.WebLoader(images, batch_size=None, num_workers=threads, persistent_workers=True)
    return lambda: (len(labels) for _, labels in loader)


def _ours(backend: str, as_bytes: bool = False) -> Callable[[Path, int, int], Epoch]:
    def make(data: Path, threads: int, batch: int) -> Epoch:
        import torch

        from senet.config import Folder
        from senet.data.source import Source, train_loader

        torch.set_num_threads(1)
        classes = int(listing(data, "train").labels.max()) + 1
        source = Source(data, backend, workers=threads)
        loader: Any = train_loader(
            Folder(classes=classes, crop=CROP), source, batch, batch, 0, 0, 1, torch.device("cpu")
        )
        epochs = iter(range(10**6))
        if as_bytes:
            return lambda: (
                len(raw.labels) for raw in loader.backend.batches(next(epochs) * loader.steps, loader.steps)
            )
        return lambda: (len(part.labels) for part in loader.batches(next(epochs), 0))

    return make


def _bare_resize(data: Path, threads: int, batch: int) -> Epoch:
    """Resize crops that were cut before, and nothing else, in one thread: the limit of what decoded shards can give."""
    import torch

    from senet.config import Folder
    from senet.data.pixels import decode
    from senet.data.resize import planes
    from senet.data.sampler import TrainSampler
    from senet.data.samples import Samples

    torch.set_num_threads(1)
    index = listing(data, "train")
    samples, keys = (
        Samples(index, Folder(crop=CROP), TrainSampler(len(index), batch, batch, 0, 0, 1)),
        range(len(index)),
    )
    images = [np.array(decode(index.storage.read(key))) for key in keys]
    boxes = samples.random_crop(0, np.array(keys), np.array([image.shape[:2] for image in images])).boxes.tolist()
    crops = (image[y : y + h, x : x + w] for image, (y, x, h, w) in zip(images, boxes, strict=True))
    cut = [planes(torch.from_numpy(np.ascontiguousarray(crop))) for crop in crops]

    def epoch() -> Iterator[int]:
        for crop in cut:
            torch.nn.functional.interpolate(crop, (CROP, CROP), mode="bilinear", antialias=True)
        yield len(cut)

    return epoch


class Contestant(NamedTuple):
    make: Callable[[Path, int, int], Epoch]
    form: str = "files"


FORMS = {"shards": Encoding(), "small": Encoding(short_side=256), "decoded": Encoding(short_side=256, decoded=True)}
CONTESTANTS = {
    "torchvision": Contestant(_torchvision),
    "timm": Contestant(_timm),
    "webdataset": Contestant(_webdataset, "shards"),
    "dali-reader": Contestant(_dali_reader),
    "ours-dali": Contestant(_ours("dali")),
    "ours-pillow": Contestant(_ours("pillow")),
    "ours-small": Contestant(_ours("auto"), "small"),
    "ours-decoded": Contestant(_ours("auto"), "decoded"),
    "ours-decoded-bytes": Contestant(_ours("auto", as_bytes=True), "decoded"),
    "bare-resize": Contestant(_bare_resize, "decoded"),
}
