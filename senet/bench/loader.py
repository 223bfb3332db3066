"""Loaders against each other on the same JPEGs: images per second and per CPU-second, and host memory.

Contestants: torchvision's ImageFolder with torch's DataLoader (as torchvision's references have it), DALI's own file
reader with its own random crop (as NVIDIA's examples have it), and this project's two backends, from folders and from
shards. Each runs in a process of its own on the same cores; rounds are interleaved, so that a slow minute of the
machine meets all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from senet.system.processes import family

CROP = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="train/CLASS/*.JPEG (default: drawn, 500 x 375, 90 kB each)"
    )
    parser.add_argument(
        "--images", type=int, default=1024, metavar="N", help="images drawn without --data (default 1024)"
    )
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[1, 2], metavar="N", help="threads or worker processes, and cores"
    )
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="images in a batch (default 64)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="of each contestant, measured (default 3)")
    parser.add_argument(
        "--contestants", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS), metavar="NAME"
    )
    parser.add_argument(
        "--large", type=int, default=0, metavar="N", help="so many of the drawn images have 20 megapixels (memory)"
    )
    parser.add_argument("--one", nargs=2, metavar=("NAME", "THREADS"), help=argparse.SUPPRESS)


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, print a table, return it as plain data."""
    if args.one:
        return _measure(args.one[0], args.data, int(args.one[1]), args.batch)
    with tempfile.TemporaryDirectory() as temporary:
        data = args.data or draw_photos(Path(temporary) / "photos", args.images, args.large)
        found: dict[tuple[str, int], list[dict[str, Any]]] = {}
        for _ in range(args.rounds):
            for threads in args.threads:
                for name in args.contestants:
                    found.setdefault((name, threads), []).append(_run(name, data, threads, args.batch))
    rows = [_row(name, threads, results, found) for (name, threads), results in found.items()]
    _print(rows)
    return {"rows": rows, "cores": len(os.sched_getaffinity(0)), "rounds": args.rounds}


def draw_photos(root: Path, count: int, large: int = 0) -> Path:
    """`count` JPEGs with detail at all scales in ten classes, `large` of them with 20 megapixels."""
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


def _run(name: str, data: Path, threads: int, batch: int) -> dict[str, Any]:
    """One contestant in a fresh process on `threads` cores."""
    command = [sys.executable, "-m", "launch.bench", "loader", "--data", str(data), "--batch", str(batch)]
    command += ["--one", name, str(threads), "--json", "-"]
    cores = sorted(os.sched_getaffinity(0))[:threads]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, preexec_fn=lambda: os.sched_setaffinity(0, cores)
    )
    if done.returncode:
        return {
            "error": done.stderr.strip().splitlines()[-1][:200]
            if done.stderr.strip()
            else f"exit code {done.returncode}"
        }
    return json.loads(done.stdout.splitlines()[-1])


def _measure(name: str, data: Path, threads: int, batch: int) -> dict[str, Any]:
    """Two epochs to warm up, then one that counts."""
    epoch = CONTESTANTS[name](data, threads, batch)
    for _ in range(2):
        sum(epoch())
    before, began, cpu = _memory(), time.monotonic(), _cpu()
    images = sum(epoch())
    seconds, cpu, after = time.monotonic() - began, _cpu() - cpu, _memory()
    return {
        "images": images,
        "per_second": images / seconds,
        "per_cpu_second": images / cpu,
        "memory": after,
        "growth": after - before,
    }


def _family() -> list[Path]:
    """/proc folders of this process and all its descendants."""
    return [Path("/proc") / str(number) for number in family(os.getpid())]


def _cpu() -> float:
    ticks = 0
    for folder in _family():
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _memory() -> float:
    """MiB in use by this process and its children, shared pages counted once (proportional set size)."""
    kilobytes = 0
    for folder in _family():
        for line in (folder / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                kilobytes += int(line.split()[1])
    return kilobytes / 1024


# ---------------------------------------------------------------------------------------------------------- contestants


def _torchvision(data: Path, threads: int, batch: int) -> Callable[[], Iterator[int]]:
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    steps = [
        transforms.RandomResizedCrop(CROP),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    images = datasets.ImageFolder(str(data / "train"), transforms.Compose(steps))
    loader = DataLoader(images, batch, shuffle=True, num_workers=threads, drop_last=True, persistent_workers=True)
    return lambda: (len(labels) for _, labels in loader)


def _dali_reader(data: Path, threads: int, batch: int) -> Callable[[], Iterator[int]]:
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


def _ours(backend: str) -> Callable[[Path, int, int], Callable[[], Iterator[int]]]:
    def make(data: Path, threads: int, batch: int) -> Callable[[], Iterator[int]]:
        import torch

        from senet.config import Folder
        from senet.data.source import Source, train_loader
        from senet.data.storage.folders import class_folders

        torch.set_num_threads(1)
        classes = len(class_folders(data / "train"))
        source = Source(data, backend, workers=threads)
        loader = train_loader(Folder(classes=classes, crop=CROP), source, batch, batch, 0, 0, 1, torch.device("cpu"))
        epochs = iter(range(10**6))
        return lambda: (len(part.labels) for part in loader.batches(next(epochs), 0))

    return make


CONTESTANTS: dict[str, Callable[[Path, int, int], Callable[[], Iterator[int]]]] = {
    "torchvision": _torchvision,
    "dali-reader": _dali_reader,
    "ours-dali": _ours("dali"),
    "ours-pillow": _ours("pillow"),
}


# ---------------------------------------------------------------------------------------------------------------- table


def _row(
    name: str, threads: int, results: list[dict[str, Any]], found: dict[tuple[str, int], list[dict[str, Any]]]
) -> dict[str, Any]:
    if errors := [result["error"] for result in results if "error" in result]:
        return {"name": name, "threads": threads, "error": errors[0]}
    row: dict[str, Any] = {"name": name, "threads": threads}
    for key in ("per_second", "per_cpu_second", "memory", "growth"):
        values = [result[key] for result in results]
        row[key], row[f"{key}_range"] = statistics.median(values), [min(values), max(values)]
    for peer in ("torchvision", "dali-reader"):
        theirs = found.get((peer, threads), [])
        if theirs and all("error" not in result for result in theirs):
            ratios = [
                own["per_cpu_second"] / other["per_cpu_second"] for own, other in zip(results, theirs, strict=True)
            ]
            row[f"of_{peer}"] = statistics.median(ratios)
    return row


def _print(rows: list[dict[str, Any]]) -> None:
    print(
        f"{'loader':13}{'threads':>8}{'images/s':>10}{'images/CPU-s (range)':>27}"
        f"{'x torchvision':>15}{'x DALI reader':>15}{'MiB':>7}"
    )
    for row in sorted(rows, key=lambda row: (row["threads"], row["name"])):
        if "error" in row:
            print(f"{row['name']:13}{row['threads']:>8}  not measured: {row['error']}")
            continue
        low, high = row["per_cpu_second_range"]
        speeds = f"{row['per_second']:>10.0f}{row['per_cpu_second']:>13.0f} ({low:.0f}-{high:.0f})".ljust(37)
        ratios = "".join(
            f"{row[key]:>15.2f}" if key in row else f"{'-':>15}" for key in ("of_torchvision", "of_dali-reader")
        )
        print(f"{row['name']:13}{row['threads']:>8}{speeds}{ratios}{row['memory']:>7.0f}")
