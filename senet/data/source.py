"""Where images come from: `train_loader` and `val_loader` make a Loader for a config's data set."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from senet.config import Data
from senet.data import cifar
from senet.data.augment import Augmentation
from senet.data.device import DevicePipeline
from senet.data.loader import BadImages, Batch, Raw, TrainLoader, ValLoader
from senet.data.memory import InMemory, synthetic
from senet.data.philox import Ints
from senet.data.sampler import Order, val_batches
from senet.data.samples import Samples
from senet.data.storage.find import find
from senet.errors import UsageError


@dataclass(frozen=True)
class Source:
    """The circumstances of loading: nothing in here changes which pixels of which image are in which batch, but for
    `backend`.
    """

    root: Path | None = None
    backend: str = "auto"  # of image folders: dali, pillow, or auto: DALI where it is installed
    workers: int | None = None  # decoding threads (dali) or processes (pillow) of a rank; None: its share of the cores
    val_batch: int = 128
    max_bad: int | None = None  # undecodable images to put up with; None: 100, or one in a thousand if that is more
    checksum: bool = True


class Backend(Protocol):
    @property
    def description(self) -> dict[str, Any]: ...
    def batches(self, first: int, count: int) -> Iterator[Raw]: ...
    def names(self, number: int) -> list[str]: ...
    def close(self) -> None: ...


class _Loader:
    def __init__(
        self,
        data: Data,
        images: int,
        fingerprint: str,
        classes: tuple[str, ...],
        backend: Backend,
        bad: BadImages,
        finish: DevicePipeline,
    ):
        self.images, self.fingerprint, self.classes = images, fingerprint, classes
        self.backend, self.bad, self.finish = backend, bad, finish
        shown = {"crop": data.crop, "mean": list(data.mean), "std": list(data.std)}
        if data.set == "folder":
            shown["resize"] = data.resize
        self.description = backend.description | shown

    @property
    def waited(self) -> float:
        return self.finish.waited

    @property
    def memory_format(self) -> torch.memory_format:
        return self.finish.memory_format

    @memory_format.setter
    def memory_format(self, value: torch.memory_format) -> None:
        self.finish.memory_format = value

    def close(self) -> None:
        self.backend.close()


class _Train(_Loader):
    def __init__(self, order: Order, *common: Any) -> None:
        super().__init__(*common)
        self.steps, self.accumulation_steps = order.steps, order.accumulation_steps

    def batches(self, epoch: int, step: int) -> Generator[Batch, None, None]:
        first = (epoch * self.steps + step) * self.accumulation_steps
        return self.finish(lambda: self.backend.batches(first, (self.steps - step) * self.accumulation_steps))

    def names(self, step: int) -> list[str]:
        first = step * self.accumulation_steps
        return [name for number in range(first, first + self.accumulation_steps) for name in self.backend.names(number)]


class _Val(_Loader):
    def __init__(self, count: int, *common: Any) -> None:
        super().__init__(*common)
        self.count = count

    def batches(self) -> Iterator[Batch]:
        return self.finish(lambda: self.backend.batches(0, self.count))


def train_loader(
    data: Data,
    source: Source,
    batch: int,
    micro_batch: int,
    seed: int,
    rank: int,
    world: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> TrainLoader:
    """The training images: global batches of `batch`, of which this rank sees its part, `micro_batch` images at a time.

    `dtype` is what the net computes in (see DevicePipeline).

    Raises UsageError for what is wrong with the data set, its path or the flags.
    """
    augment = data.augment
    if (augment.mixup or augment.cutmix) and micro_batch % 2:
        raise UsageError(
            f"data.augment: mixup and cutmix need pairs, but a rank takes {micro_batch} images at once; change batch"
        )
    finish = DevicePipeline(data, device, Augmentation(data, seed) if augment.active else None, dtype)
    if data.set == "folder":
        index = find(_root(source), "train", data.classes)
        order = Order(
            len(index),
            batch,
            micro_batch,
            seed,
            rank,
            world,
            augment.repeats,
            index.labels if augment.balance else None,
        )
        bad = _bad(source, len(index))
        backend = _decoder(Samples(index, data, order), source, device, bad)
        return _Train(order, data, len(index), index.fingerprint, index.classes, backend, bad, finish)
    pixels, labels = _in_memory(data, source, "train", seed)
    order = Order(
        len(labels), batch, micro_batch, seed, rank, world, augment.repeats, labels if augment.balance else None
    )
    backend = InMemory(pixels, labels, data, order, [], device)
    return _Train(order, data, len(labels), _fingerprint(pixels, labels), (), backend, BadImages(0), finish)


def val_loader(
    data: Data, source: Source, rank: int, world: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> ValLoader:
    """The validation images (CIFAR: the test set), this rank's part of them. Raises UsageError likewise."""
    if source.val_batch < 1:
        raise UsageError(f"--val-batch {source.val_batch}: must be at least 1")
    if data.set == "folder":
        index = find(_root(source), "val", data.classes)
        dealt = val_batches(len(index), source.val_batch, rank, world)
        bad = _bad(source, len(index))
        backend = _decoder(Samples(index, data, None, tuple(dealt)), source, device, bad)
        return _Val(
            len(dealt),
            data,
            len(index),
            index.fingerprint,
            index.classes,
            backend,
            bad,
            DevicePipeline(data, device, None, dtype),
        )
    pixels, labels = _in_memory(data, source, "test", 1)
    dealt = val_batches(len(labels), source.val_batch, rank, world)
    backend = InMemory(pixels, labels, data, None, dealt, device)
    return _Val(
        len(dealt),
        data,
        len(labels),
        _fingerprint(pixels, labels),
        (),
        backend,
        BadImages(0),
        DevicePipeline(data, device, None, dtype),
    )


def _bad(source: Source, images: int) -> BadImages:
    return BadImages(max(100, images // 1000) if source.max_bad is None else source.max_bad)


def _fingerprint(pixels: NDArray[np.uint8], labels: Ints) -> str:
    return hashlib.sha256(labels.astype("<i8").tobytes() + pixels[::101].tobytes()).hexdigest()[:16]


def _root(source: Source) -> Path:
    if source.root is None:
        raise UsageError(
            "--data DIR is needed: the folder of the data set (python -m launch.prepare demo DIR makes one to try)"
        )
    return source.root


def _in_memory(data: Data, source: Source, split: str, seed: int) -> Any:
    if source.backend != "auto":
        raise UsageError(f"--backend {source.backend} would have no effect: {data.set} is held in memory; leave it out")
    if data.set == "synthetic":
        return synthetic(data, data.train_images if split == "train" else data.val_images, seed)
    return cifar.read(_root(source), data.set, split, source.checksum)


def has_dali() -> bool:
    """Whether DALI is installed; it is not imported."""
    return importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None


def _decoder(samples: Samples, source: Source, device: torch.device, bad: BadImages) -> Backend:
    if source.workers is not None and source.workers < 1:
        raise UsageError(f"--workers {source.workers}: must be at least 1")
    workers = source.workers or max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    if source.backend == "dali" and not has_dali():
        raise UsageError(
            "--backend dali: nvidia-dali-cuda130 is not installed; pip install -r requirements.txt, "
            "or use --backend pillow"
        )
    if source.backend != "pillow" and has_dali():
        from senet.data.dali import Dali

        return Dali(samples, device, workers, bad)
    from senet.data.pillow import Pillow

    return Pillow(samples, workers, bad)
