"""One short training on a CPU: ours as `launch.train` makes it, or one like torchvision's reference or timm's train.py.

The peers are written anew from how they work: their loaders, loops and meters around our net, with the augmentation of
its config. Nothing is imported that a contestant does without.

    python -m senet.bench.peers CONTESTANT FOLDER       FOLDER: what senet.bench.train has prepared
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from senet import models
from senet.config import SGD, Cifar, Config, Folder, from_dict
from senet.data import cifar
from senet.system.processes import cpu_seconds


@dataclass(frozen=True)
class Taken:
    """What a training took, its first epoch left out, which warms up."""

    training: float  # CPU-ms an image
    validation: float
    start: float  # CPU-s of the process until its first step
    wall: float  # seconds until then


class Clock:
    """The CPU-seconds of this process: `first` until its first step was done, and those of each epoch's parts."""

    def __init__(self) -> None:
        self.first = self.wall = 0.0
        self.epochs: dict[str, list[float]] = {"training": [], "validation": []}

    def step(self) -> None:
        """Note that a step was done."""
        if not self.first:
            began = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
            self.first, self.wall = cpu_seconds(), time.clock_gettime(time.CLOCK_BOOTTIME) - began

    def time(self, part: str, act: Callable[[], Any]) -> Any:
        began = cpu_seconds()
        result = act()
        self.epochs[part].append(cpu_seconds() - began)
        return result

    def taken(self, images: int, val_images: int, steps: int) -> Taken:
        training, validation = (sum(after) / len(after) for _, *after in self.epochs.values())
        return Taken(1e3 * training / images, 1e3 * validation / val_images, self.first - training / steps, self.wall)


class Peer(Protocol):
    images: int  # of an epoch
    val_images: int
    net: nn.Module

    def train(self, after_step: Callable[[], object]) -> None:
        """Train for an epoch."""

    def validate(self) -> None: ...


class Pictures(Dataset[tuple[Any, int]]):
    """CIFAR as torchvision's data sets give it: an image of PIL, transformed, and its label."""

    def __init__(self, settings: Config, data: Path, split: str, transform: Any = None) -> None:
        self.pixels, self.labels = cifar.read(data, settings.data.set, split)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.pixels[number])), int(self.labels[number])


class Torchvision:
    """Like references/classification/train.py: its presets, torch's DataLoader and SGD, and meters of loss and errors
    that are read in each step.
    """

    def __init__(self, settings: Config, data: Path) -> None:
        from torchvision import datasets, transforms

        shown, optim = settings.data, settings.optim
        assert isinstance(optim, SGD)
        end = [transforms.PILToTensor(), transforms.ConvertImageDtype(torch.float)]
        end += [transforms.Normalize(mean=shown.mean, std=shown.std)]
        flip = transforms.RandomHorizontalFlip()
        sets: list[Any]
        if isinstance(shown, Folder):
            crop = transforms.RandomResizedCrop(shown.crop, scale=shown.area, ratio=shown.aspect, antialias=True)
            whole = [transforms.Resize(shown.resize, antialias=True), transforms.CenterCrop(shown.crop)]
            changes = {"train": [crop, flip], "val": whole}
            sets = [
                datasets.ImageFolder(str(data / split), transforms.Compose([*change, *end]))
                for split, change in changes.items()
            ]
        else:
            assert isinstance(shown, Cifar)
            changes = {"train": [transforms.RandomCrop(shown.crop, padding=shown.pad), flip], "test": []}
            sets = [
                Pictures(settings, data, split, transforms.Compose([*change, *end]))
                for split, change in changes.items()
            ]
        self.images, self.val_images = map(len, sets)
        self.loader = DataLoader(sets[0], settings.batch, shuffle=True)
        self.val_loader = DataLoader(sets[1], settings.batch)
        self.net = models.build(settings.net, shown.classes)
        self.criterion = nn.CrossEntropyLoss(label_smoothing=optim.label_smoothing)
        self.optimiser = torch.optim.SGD(
            self.net.parameters(), lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimiser, T_max=settings.epochs)
        self.meters: dict[str, float] = {}

    def train(self, after_step: Callable[[], object]) -> None:
        self.net.train()
        for images, labels in self.loader:
            output = self.net(images)
            loss = self.criterion(output, labels)
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
            self._count(loss, output, labels)
            after_step()
        self.schedule.step()

    def validate(self) -> None:
        self.net.eval()
        with torch.inference_mode():
            for images, labels in self.val_loader:
                output = self.net(images)
                self._count(self.criterion(output, labels), output, labels)

    def _count(self, loss: Tensor, output: Tensor, labels: Tensor) -> None:
        with torch.inference_mode():
            hits = output.topk(min(5, output.shape[1])).indices.t() == labels[None]
            values = {f"top{k}": hits[:k].flatten().sum(dtype=torch.float32).item() for k in (1, 5)}
        for name, value in {**values, "loss": loss.item() * len(labels)}.items():
            self.meters[name] = self.meters.get(name, 0.0) + value


class Timm:
    """Like train.py: timm's data sets, loader with fast collation, optimiser, schedule of each step and meters. The
    images are normalised by its prefetcher, the loss is read in each step, errors in validation only.
    """

    def __init__(self, settings: Config, data: Path) -> None:
        import timm.utils
        from timm.data import create_dataset, create_loader
        from timm.optim import create_optimizer_v2
        from timm.scheduler import create_scheduler_v2

        shown, optim = settings.data, settings.optim
        assert isinstance(optim, SGD)
        common = {"input_size": (3, shown.crop, shown.crop), "batch_size": settings.batch, "num_workers": 0}
        common |= {"mean": shown.mean, "std": shown.std, "device": torch.device("cpu"), "persistent_workers": False}
        augmented: dict[str, Any] = {"is_training": True, "color_jitter": None}
        if isinstance(shown, Folder):
            sets: list[Any] = [
                create_dataset("", root=str(data), split=split, is_training=split == "train")
                for split in ("train", "val")
            ]
            augmented |= {"scale": shown.area, "ratio": shown.aspect}
            crop_pct = shown.crop / shown.resize
        else:
            sets = [Pictures(settings, data, split) for split in ("train", "test")]
            crop_pct = 1.0
        self.images, self.val_images = map(len, sets)
        self.loader: Any = create_loader(sets[0], **common, **augmented)
        self.val_loader: Any = create_loader(sets[1], **common, crop_pct=crop_pct)
        self.net = models.build(settings.net, shown.classes)
        how = {"opt": "momentum", "lr": optim.lr, "momentum": optim.momentum, "weight_decay": optim.weight_decay}
        self.optimiser = create_optimizer_v2(self.net, **how)
        self.schedule, _ = create_scheduler_v2(
            self.optimiser, "cosine", settings.epochs, step_on_epochs=False, updates_per_epoch=len(self.loader)
        )
        self.criterion, self.val_criterion = (
            nn.CrossEntropyLoss(label_smoothing=optim.label_smoothing),
            nn.CrossEntropyLoss(),
        )
        self.accuracy, self.meter = timm.utils.accuracy, timm.utils.AverageMeter
        self.updates = 0

    def train(self, after_step: Callable[[], object]) -> None:
        self.net.train()
        losses = self.meter()
        for images, labels in self.loader:
            loss = self.criterion(self.net(images), labels)
            loss.backward()
            self.optimiser.step()
            self.optimiser.zero_grad()
            losses.update(loss.item(), len(labels))
            self.updates += 1
            self.schedule.step_update(num_updates=self.updates, metric=losses.avg)
            after_step()

    def validate(self) -> None:
        self.net.eval()
        losses, top1, top5 = self.meter(), self.meter(), self.meter()
        with torch.no_grad():
            for images, labels in self.val_loader:
                output = self.net(images)
                loss = self.val_criterion(output, labels)
                errors = self.accuracy(output, labels, topk=(1, 5))
                losses.update(loss.item(), len(labels))
                for meter, error in zip((top1, top5), errors, strict=True):
                    meter.update(error.item(), len(labels))


PEERS: dict[str, Callable[[Config, Path], Peer]] = {"torchvision": Torchvision, "timm": Timm}
CONTESTANTS = ("ours", *PEERS)


def measure(name: str, folder: Path) -> Taken:
    """Train as a contestant does, for the epochs of the config in `folder`, on the data in it."""
    settings, clock = from_dict(json.loads((folder / "config.json").read_text())), Clock()
    if name == "ours":
        return ours(settings, folder, clock)
    peer = PEERS[name](settings, folder / "data")
    for _ in range(settings.epochs):
        clock.time("training", lambda: peer.train(clock.step))
        clock.time("validation", peer.validate)
    return clock.taken(peer.images, peer.val_images, peer.images // settings.batch)


def ours(settings: Config, folder: Path, clock: Clock) -> Taken:
    """Train as `launch.train --track none --workers 1` does."""
    from senet import distributed
    from senet.data.source import Source
    from senet.run import flags
    from senet.run.requests import Request
    from senet.run.run import Run
    from senet.run.sample import Sample
    from senet.run.stop import Stop

    class Timed(Run):
        def _train_epoch(self) -> bool:
            self.keeper.finish()  # an epoch's checkpoint is not to be written while the next epoch is timed
            return bool(clock.time("training", super()._train_epoch))

        def _request(self) -> Request:
            clock.step()
            return super()._request()

        def _validate(self, seen: Sample | None) -> dict[str, float]:
            errors: dict[str, float] = clock.time("validation", partial(super()._validate, seen))
            return errors

    parser = argparse.ArgumentParser()
    flags.add(parser)
    source = Source(folder / "data", workers=1, val_batch=settings.batch)
    more = {"out": folder / f"run-{os.getpid()}", "name": "bench", "overrides": (), "source": source, "device": "cpu"}
    run = Timed(
        settings, flags.collect(parser.parse_args(["--track", "none"]), **more), distributed.start("cpu"), Stop()
    )
    run.train()
    return clock.taken(run.loader.steps * settings.batch, run.val.images, run.loader.steps)


if __name__ == "__main__":
    print(json.dumps(asdict(measure(sys.argv[1], Path(sys.argv[2])))))
