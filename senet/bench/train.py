"""Trainings against peers, end to end: CPU-seconds an image takes in training and in validation, and those of a start.

Ours is a run as `launch.train` makes it. The peers are loops like torchvision's reference and like timm's train.py,
written anew from how they work, which train the same net on the same images in as large batches, one thread each and no
workers. Each is a process of its own, started again in each round, and rounds are interleaved. A start is all of a
process up to its first step: Python, imports, data, the net, for ours also its checks and rehearsal. The first epoch
warms up, and those after it count; checkpoints are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from senet import config
from senet.bench import peers
from senet.bench.contestants import short
from senet.bench.peers import CONTESTANTS, Taken
from senet.bench.rows import Fact, Row
from senet.config import Config
from senet.data import cifar
from senet.data.storage.find import listing
from senet.prepare import demo
from senet.prepare.drawing import CLASSES
from senet.system.timing import Spread

NETS = ("configs/imagenet/se_resnet18.yaml", "configs/cifar10/se_resnet20.yaml")
PARTS = {"training": "CPU-ms an image", "validation": "CPU-ms an image", "start": "CPU-s"}


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("configs", nargs="*", default=NETS, metavar="CONFIG", help="(default: SE-ResNet-18, SE-ResNet-20 on CIFAR)")
    drawn = "of nets for image files: a data set, of which the first images are taken (default: a demo set is drawn)"
    add("--data", type=Path, metavar="DIR", help=drawn)
    add("--cifar", type=Path, metavar="DIR", help="the same of CIFAR (default: noise)")
    add("--crop", type=int, default=128, metavar="PIXELS", help="of image files (default 128)")
    add("--batch", type=int, metavar="N", help="(default: the config's, at most 32 image files)")
    add("--steps", type=int, default=4, metavar="N", help="of an epoch (default 4); half as many images validate it")
    add("--epochs", type=int, default=1, metavar="N", help="that count in each round (default 1)")
    add("--rounds", type=int, default=5, metavar="N", help="(default 5)")
    names = ", ".join(CONTESTANTS)
    add("--contestants", nargs="+", choices=CONTESTANTS, default=CONTESTANTS, metavar="NAME", help=names)


def run(args: argparse.Namespace) -> Iterator[Row]:
    """Measure the contestants with each net in rounds; yield their rows after each round. Raises UsageError."""
    for name in args.configs:
        with tempfile.TemporaryDirectory() as temporary:
            settings = _prepare(name, args, Path(temporary))
            found: dict[str, list[Taken | str]] = {contestant: [] for contestant in args.contestants}
            for number in range(args.rounds):
                first = number % len(found)
                for contestant in [*found][first:] + [*found][:first]:
                    found[contestant].append(_start(contestant, Path(temporary)))
                what = f"{short(name)}, {settings.data.crop} px, batch {settings.batch}"
                yield from (_joined(what, part, contestant, found) for part in PARTS for contestant in found)


def _start(name: str, folder: Path) -> Taken | str:
    """Measure a contestant in a fresh process of one thread; return what it took, or why it failed."""
    words, env = [sys.executable, "-m", peers.__name__, name, str(folder)], os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        return "".join(done.stderr.strip().splitlines()[-1:])[:200] or f"exit code {done.returncode}"
    return Taken(**json.loads(done.stdout.splitlines()[-1]))


def _joined(what: str, part: str, name: str, found: Mapping[str, Sequence[Taken | str]]) -> Row:
    """Join a contestant's rounds; ratios to it are from pairs of the same round."""
    row = partial(Row, f"{what}: {part}", name, unit=PARTS[part])
    if failures := [taken for taken in found[name] if isinstance(taken, str)]:
        return row(failure=failures[0])
    own = [getattr(taken, part) for taken in found[name]]
    facts: dict[str, Fact] = {}
    ours = [getattr(taken, part, None) for taken in found.get("ours", [])]
    if name != "ours" and ours and None not in ours:
        facts["ours, times this"] = Spread.of([our / other for our, other in zip(ours, own, strict=True)])
    if part == "start":
        facts["wall, s"] = Spread.of([taken.wall for taken in found[name] if isinstance(taken, Taken)])
    return row(Spread.of(own), facts=facts)


def _prepare(name: str, args: argparse.Namespace, folder: Path) -> Config:
    """Write `data` and `config.json` of a contestant's start into a folder; return the config. Raises UsageError."""
    loaded = config.load(name)
    batch = args.batch or (min(loaded.batch, 32) if isinstance(loaded.data, config.Folder) else loaded.batch)
    changes = [f"batch={batch}", f"epochs={1 + args.epochs}", "schedule={shape: cosine, warmup: none}"]
    images, val_images = batch * args.steps, -(-batch * args.steps // 2)
    if isinstance(loaded.data, config.Folder):
        classes = _files(args.data, images, val_images, folder)
        resize = args.crop * loaded.data.resize // loaded.data.crop
        changes += [f"data.classes={classes}", f"data.crop={args.crop}", f"data.resize={resize}"]
    else:
        _cifar(args.cifar, loaded.data, images, val_images, folder / "data")
    settings = config.load(name, changes)
    (folder / "config.json").write_text(json.dumps(config.to_dict(settings)))
    return settings


def _files(given: Path | None, images: int, val_images: int, folder: Path) -> int:
    """Copy the first images of each class of a data set to `folder`/data, or draw them; return the number of classes.

    Of more classes than validation images, as many are taken as there are of these.
    """
    if given is None:
        demo.prepare(folder / "data", demo.Demo(max(images, 10), max(val_images, 10)), processes=1)
        return len(CLASSES)
    classes = min(len(listing(given, "val").classes), val_images)
    for split, count in (("train", images), ("val", val_images)):
        index = listing(given, split)
        ranks = np.arange(len(index)) - np.searchsorted(index.labels, index.labels)  # in their class
        order = np.lexsort((index.labels, ranks))
        for image in order[index.labels[order] < classes][:count].tolist():
            file = folder / "data" / split / index.classes[index.labels[image]] / f"{image}.JPEG"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(index.storage.read(image))
    return classes


def _cifar(given: Path | None, data: Any, images: int, val_images: int, folder: Path) -> None:
    """Write the first images of CIFAR's splits, or noise, to `folder` in the binary layout."""
    layout, generator = cifar.LAYOUTS[data.set][1], np.random.default_rng(0)
    assert isinstance(layout.label, int)
    for split, count in (("train", images), ("test", val_images)):
        if given:
            pixels, labels = (part[:count] for part in cifar.read(given, data.set, split))
        else:
            pixels = generator.integers(0, 256, (count, 32, 32, 3), np.uint8)
            labels = np.arange(count) % data.classes
        records = np.zeros((count, layout.label + cifar.PIXELS), np.uint8)
        records[:, layout.label - 1] = labels
        records[:, layout.label :] = pixels.transpose(0, 3, 1, 2).reshape(count, -1)
        names = layout.files[split]
        (folder / layout.folder).mkdir(parents=True, exist_ok=True)
        for name, part in zip(names, np.array_split(records, len(names)), strict=True):
            (folder / layout.folder / name).write_bytes(part.tobytes())
