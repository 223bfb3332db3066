"""Where images come from: `train_loader` and `val_loader` make a loader for the data set of a config."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from senet.config import Data, Folder, Synthetic
from senet.data import cifar
from senet.data.augment import Augmentation
from senet.data.cache import cached, keep
from senet.data.device import DevicePipeline
from senet.data.loader import BadImages, Batch, Raw, TrainLoader, ValLoader
from senet.data.memory import InMemory, synthetic
from senet.data.philox import Ints
from senet.data.sampler import NUMBER, Sampler, TrainSampler, ValSampler
from senet.data.samples import Samples
from senet.data.storage.find import find, listing
from senet.data.storage.folders import Folders
from senet.data.storage.index import Index, Names
from senet.errors import UsageError
from senet.system.processes import masks_of_ranks, share_of_cores


@dataclass(frozen=True)
class Source:
    """The circumstances of loading: nothing in here changes which pixels of which image are in which batch, but for
    `backend`.
    """

    root: Path | None = None
    backend: str = "auto"  # of image files: dali, pillow, or auto: DALI if it is installed
    decode: str = "auto"  # DALI: on the gpu or the cpu; auto: on the GPU if there is one
    hw_decoder_load: float = 0.65  # DALI on a GPU: the share of JPEGs for its hardware decoder, if it has one
    cache: str | None = None  # ram: images are decoded once, into memory that the ranks of a node share
    workers: int | None = None  # decoding threads (dali) or processes (pillow) of a rank; None: its share of the cores
    val_batch: int = 128
    max_bad: int | None = None  # undecodable images to put up with; None: 100, or one in a thousand if that is more
    checksum: bool = True

    @property
    def folder(self) -> Path:
        """The root. Raises UsageError if there is none."""
        if self.root is None:
            raise UsageError(
                "--data DIR is needed: the folder of the data set (python -m launch.prepare demo DIR makes one to try)"
            )
        return self.root

    @property
    def uses_dali(self) -> bool:
        """Whether DALI decodes image files. Raises UsageError if it is asked for and not installed."""
        if self.backend == "dali" and not has_dali():
            raise UsageError(
                "--backend dali: nvidia-dali-cuda130 is not installed; pip install -r requirements.txt, "
                "or use --backend pillow"
            )
        return self.backend != "pillow" and has_dali()

    @property
    def workers_per_rank(self) -> int:
        """The number of decoding threads or processes. Raises UsageError for fewer than one."""
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"--workers {self.workers}: must be at least 1")
        return self.workers or share_of_cores(os.sched_getaffinity(0), masks_of_ranks())


def has_dali() -> bool:
    """Tell whether DALI is installed, without importing it."""
    return importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None


class Backend(Protocol):
    """What makes raw batches, numbered as its sampler numbers them."""

    @property
    def description(self) -> dict[str, Any]: ...
    def batches(self, first: int, count: int) -> Iterator[Raw]: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class _Split:
    labels: Ints
    fingerprint: str
    classes: tuple[str, ...]
    bad: BadImages
    path: Callable[[int], str]  # of an image
    backend: Callable[[Sampler], Backend]


class _Loader(DevicePipeline):
    def __init__(self, data: Data, split: _Split, sampler: Sampler, *how: Any) -> None:
        super().__init__(data, *how)
        self.split, self.backend, self.bad = split, split.backend(sampler), split.bad
        self.images, self.fingerprint, self.classes = len(split.labels), split.fingerprint, split.classes
        shown = {"crop": data.crop, "mean": list(data.mean), "std": list(data.std), "classes": list(split.classes)}
        if isinstance(data, Folder):
            shown |= {"resize": data.resize, "interpolation": data.interpolation}
        self.description = self.backend.description | shown

    def close(self) -> None:
        self.backend.close()


class _Train(_Loader):
    def __init__(self, data: Data, split: _Split, sampler: TrainSampler, *how: Any) -> None:
        super().__init__(data, split, sampler, *how)
        self.sampler, self.steps, self.accumulation_steps = sampler, sampler.steps, sampler.accumulation_steps

    def batches(self, epoch: int, step: int) -> Generator[Batch, None, None]:
        first = (epoch * self.steps + step) * self.accumulation_steps
        return self(lambda: self.backend.batches(first, (self.steps - step) * self.accumulation_steps))

    def names(self, step: int) -> list[str]:
        numbers = range(step * self.accumulation_steps, (step + 1) * self.accumulation_steps)
        return [self.split.path(int(key) & NUMBER) for number in numbers for key in self.sampler.keys(number)]


class _Val(_Loader):
    def __init__(self, data: Data, split: _Split, sampler: ValSampler, *how: Any) -> None:
        super().__init__(data, split, sampler, *how)
        self.count, self.labels, self.made_from = len(sampler.batches), split.labels, (data, split, sampler, how)

    def batches(self) -> Iterator[Batch]:
        return self(lambda: self.backend.batches(0, self.count))

    def first(self, images: int) -> ValLoader:
        data, split, sampler, how = self.made_from
        only = np.concatenate([keys[:images] for keys in sampler.batches[:1]] or [np.empty(0, np.int64)])
        few = _Val(data, split, ValSampler(self.images, images, 0, 1, only), *how)
        few.memory_format = self.memory_format
        return few

    def name(self, image: int) -> str:
        return self.split.path(image)


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
    """Make a loader of training images: global batches of `batch`, of which this rank sees its part, `micro_batch`
    images at a time.

    `dtype` is what the net computes in (see DevicePipeline). Raises UsageError for what is wrong with the data set, its
    path or the flags.
    """
    augment = data.augment
    if (augment.mixup or augment.cutmix) and micro_batch % 2:
        raise UsageError(
            f"data.augment: mixup and cutmix need pairs, but a rank takes {micro_batch} images at once; change batch"
        )
    split = _open(data, source, "train", seed, device)
    balance = split.labels if augment.balance else None
    sampler = TrainSampler(len(split.labels), batch, micro_batch, seed, rank, world, augment.repeats, balance)
    augmentation = Augmentation(data, seed) if augment.active else None
    return _Train(data, split, sampler, device, augmentation, dtype)


def val_loader(
    data: Data,
    source: Source,
    rank: int,
    world: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    only: Ints | None = None,
) -> ValLoader:
    """Make a loader of this rank's part of the validation images (CIFAR: the test set), or of those numbers in `only`.

    Raises UsageError likewise.
    """
    return _val(data, source, _open(data, source, "val", 1, device), rank, world, device, dtype, only)


def files_loader(
    data: Data,
    source: Source,
    files: Sequence[Path],
    labels: Ints,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> ValLoader:
    """Make a loader of these image files, whose pixels are made as those of a validation."""
    if not isinstance(data, Folder):
        data = Folder(classes=data.classes, crop=data.crop, resize=data.crop, mean=data.mean, std=data.std)
    index = Index(Folders(Path(), Names.of(map(str, files)), {}), labels, ())  # called as the caller calls them
    return _val(data, source, _images(data, source, index, len(files), device), 0, 1, device, dtype, None)


def _val(
    data: Data,
    source: Source,
    split: _Split,
    rank: int,
    world: int,
    device: torch.device,
    dtype: torch.dtype,
    only: Ints | None,
) -> ValLoader:
    if source.val_batch < 1:
        raise UsageError(f"--val-batch {source.val_batch}: must be at least 1")
    sampler = ValSampler(len(split.labels), source.val_batch, rank, world, only)
    return _Val(data, split, sampler, device, None, dtype)


def list_images(
    data: Data, source: Source, exchange: Callable[[Any], list[Any]], wanted: Sequence[str] = ("train", "val")
) -> None:
    """Let one process of each machine list the images of the splits that are `wanted`, and save the list if that took
    long; the others wait for it and read it. With `source.cache`, all decode them then. `exchange` returns what each
    rank gives it.

    Raises UsageError, on all ranks, if they cannot be listed on any machine, or not be kept in its memory.
    """
    refusal = ""
    if isinstance(data, Folder) and int(os.environ.get("LOCAL_RANK", "0")) == 0:
        try:
            for split in wanted:
                listing(source.folder, split)
        except UsageError as error:
            refusal = str(error)
    refusals = exchange(refusal)
    if refusals[0]:
        raise UsageError(refusals[0])
    for rank, text in enumerate(refusals):
        if text:
            raise UsageError(f"{text} (on the machine of rank {rank}, while rank 0 has a data set)")
    if source.cache and isinstance(data, Folder):
        if source.backend != "auto":
            raise UsageError(f"--backend {source.backend} would have no effect with --cache; leave one of them out")
        keep([find(source.folder, split, data.classes) for split in wanted], source.workers_per_rank, exchange)


def _open(data: Data, source: Source, split: str, seed: int, device: torch.device) -> _Split:
    if isinstance(data, Folder):
        index = find(source.folder, split, data.classes)
        if source.cache:
            index = cached(index)
        return _images(data, source, index, max(100, len(index) // 1000), device)
    if source.backend != "auto":
        raise UsageError(f"--backend {source.backend} would have no effect: {data.set} is held in memory; leave it out")
    if source.cache:
        raise UsageError(f"--cache {source.cache} would have no effect: {data.set} is held in memory; leave it out")
    classes: tuple[str, ...] = ()
    if isinstance(data, Synthetic):
        pixels, labels = synthetic(data, data.train_images if split == "train" else data.val_images, seed)
    else:
        pixels, labels = cifar.read(source.folder, data.set, "train" if split == "train" else "test", source.checksum)
        classes = cifar.class_names(source.folder, data.set)
    fingerprint = hashlib.sha256(labels.astype("<i8").tobytes() + pixels[::101].tobytes()).hexdigest()[:16]

    def memory(sampler: Sampler) -> Backend:
        return InMemory(pixels, labels, data, sampler, device)

    return _Split(labels, fingerprint, classes, BadImages(0), lambda image: f"{data.set} {image}", memory)


def _images(data: Folder, source: Source, index: Index, max_bad: int, device: torch.device) -> _Split:
    bad = BadImages(max_bad if source.max_bad is None else source.max_bad)

    def decoder(sampler: Sampler) -> Backend:
        samples = Samples(index, data, sampler)
        if source.backend == "auto" and index.storage.columns.get("shapes", np.zeros(1)).any():
            from senet.data.decoded import Decoded

            return Decoded(samples, device, source.workers_per_rank, bad)
        if source.uses_dali:
            from senet.data.dali import Dali

            decode = source.decode, source.hw_decoder_load
            return Dali(samples, device, source.workers_per_rank, bad, *decode)
        if source.decode != "auto":
            raise UsageError(f"--decode {source.decode} would have no effect: pillow decodes on the CPU; leave it out")
        from senet.data.pillow import Pillow

        return Pillow(samples, source.workers_per_rank, bad)

    return _Split(index.labels, index.fingerprint, index.classes, bad, index.storage.path, decoder)
