"""Image folders through PIL and torch's DataLoader, as torchvision decodes them: the second backend, where there is no DALI."""

from __future__ import annotations

import io
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from senet.data.loader import Bad, Raw
from senet.data.samples import Samples

Made = tuple[torch.Tensor, torch.Tensor, list[tuple[str, str]]]


class Batches(Dataset[Made]):
    """Item `number` is a whole batch, made in one worker: pixels, labels, and what could not be decoded."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples
        self.known: set[str] = set()  # undecodable, as far as this worker knows

    def __getitem__(self, number: int) -> Made:
        found, opened, indices = [], [], []
        for index in self.samples.without(number, self.known.__contains__):
            path = self.samples.folder.paths[index]
            try:
                opened.append(_load(path))
                indices.append(index)
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                found.append((path, str(error) or type(error).__name__))
                self.known.add(path)
        images = np.array(indices, np.int64)
        pixels = self._cut(number, images, opened)
        return torch.from_numpy(pixels), torch.from_numpy(self.samples.folder.labels[images]), found

    def _cut(self, number: int, images: NDArray[np.int64], opened: list[Image.Image]) -> NDArray[np.uint8]:
        crop = self.samples.data.crop
        out = np.empty((len(opened), crop, crop, 3), np.uint8)
        if not opened:
            return out
        sizes = np.array([(image.height, image.width) for image in opened], np.int64)
        if self.samples.order is None:
            for place, (image, (h, w), (y, x)) in enumerate(zip(opened, *self.samples.centre_cut(sizes), strict=True)):
                out[place] = np.asarray(image.resize((w, h), Image.Resampling.BILINEAR))[y : y + crop, x : x + crop]
            return out
        cut = self.samples.random_cut(number, images, sizes)
        for place, (image, (y, x, h, w), flip) in enumerate(zip(opened, cut.boxes, cut.flips, strict=True)):
            # Crop first: PIL's resize with a box would let pixels outside it bleed in.
            part = image.crop((x, y, x + w, y + h)).resize((crop, crop), Image.Resampling.BILINEAR)
            out[place] = np.asarray(part)[:, ::-1] if flip else np.asarray(part)
        return out


class Vision:
    """Batches of `samples` from any number on. `bad` collects what cannot be decoded."""

    def __init__(self, samples: Samples, workers: int, bad: Bad) -> None:
        self.numbers = range(0)
        self.bad = bad
        self.loader = DataLoader(
            Batches(samples),
            batch_size=None,
            sampler=_Numbers(self),
            num_workers=workers,
            worker_init_fn=_outlive_signals,
            persistent_workers=workers > 0,
            generator=torch.Generator(),  # else it draws from the one that the net's dropout uses, at a moment of its own
        )

    @property
    def description(self) -> dict[str, Any]:
        return {"backend": "vision", "interpolation": "bilinear", "antialias": True, "orientation": "as stored"}

    def batches(self, first: int, count: int) -> Iterator[Raw]:
        """Batches `first` to `first + count - 1`."""
        self.numbers = range(first, first + count)
        for pixels, labels, found in self.loader:
            for path, reason in found:
                if path not in self.bad:
                    self.bad.note(path, reason)
            yield Raw(pixels, labels)

    def close(self) -> None:
        iterator = getattr(self.loader, "_iterator", None)
        if iterator is not None and hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()


class _Numbers(torch.utils.data.Sampler[int]):
    """The batches asked for at the moment: lets one DataLoader, with its workers, serve every epoch."""

    def __init__(self, vision: Vision) -> None:
        self.vision = vision

    def __iter__(self) -> Iterator[int]:
        return iter(self.vision.numbers)

    def __len__(self) -> int:
        return len(self.vision.numbers)


def _outlive_signals(worker: int) -> None:
    """A stop request is for the trainer, which still needs its batches."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _load(path: str) -> Image.Image:
    with open(path, "rb") as file:
        content = file.read()
    image = Image.open(io.BytesIO(content))
    image.load()
    if image.mode.startswith("I;16") or image.mode == "I":  # PIL would clip 16 bits to white
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")
