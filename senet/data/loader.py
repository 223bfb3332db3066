"""The contract of all loaders: what they give, and what may be asked of them."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from senet.data.philox import Ints
from senet.errors import RunError

AHEAD = 3  # batches that wait on the host; on a GPU it is one, with another in the making


class Batch(NamedTuple):
    # [b, 3, H, W], normalised, on the device, in the loader's memory format; float32, or what the net computes in
    images: Tensor
    labels: Tensor  # int64 [b]
    others: Tensor | None = None  # int64 [b], labels of what each image is mixed with
    weights: Tensor | None = None  # float32 [b], shares of the images themselves, 1/2 to 1
    keys: Ints | None = None  # [b], which images they are (see `sampler`), on the host


class Raw(NamedTuple):
    """What a backend makes, on the host or the device: uint8 pixels [b, H, W, 3], labels [b]."""

    pixels: Tensor
    labels: Tensor
    epoch: int = 0
    keys: Ints | None = None  # [b], which images they are


class Loader(Protocol):
    """What loaders of training and validation images have in common."""

    images: int  # in the whole set
    description: dict[str, Any]  # how pixels are made; plain values
    bad: BadImages
    memory_format: torch.memory_format  # of the images; may be set until the first batch is asked for
    fingerprint: str  # of the images, their order and labels
    classes: tuple[str, ...]  # names by label; empty if the data set does not tell them

    @property
    def waited(self) -> float:
        """The seconds that the consumer spent waiting for data."""

    def close(self) -> None: ...


class TrainLoader(Loader, Protocol):
    steps: int
    accumulation_steps: int

    def batches(self, epoch: int, step: int) -> Generator[Batch, None, None]:
        """Yield the micro-batches from a step to the end of its epoch, all of one size."""

    def names(self, step: int) -> list[str]:
        """Return the paths of this rank's images in a step, counted over the whole run."""


class ValLoader(Loader, Protocol):
    labels: Ints  # of all images of the set

    def batches(self) -> Iterator[Batch]:
        """Yield this rank's part of the validation set, each image that can be decoded once."""

    def first(self, images: int) -> ValLoader:
        """Return a loader of this rank's first `images` alone, or fewer if there are not so many in its first batch."""

    def name(self, image: int) -> str:
        """Return what an image is called: its path, or its number in a set without files."""


class BadImages(dict[str, str]):
    """Undecodable images that this rank met: path -> reason, at most `limit` of them."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def note(self, path: str, reason: object) -> None:
        """Add an image. Raises RunError as `check`."""
        self.setdefault(path, " ".join(str(reason).split())[:200])
        self.check(self)

    def check(self, bad: Mapping[str, str]) -> None:
        """Raise RunError, listing them, if `bad`, of this rank or of all, are more than the limit."""
        if len(bad) > self.limit:
            listed = "\n".join(f"  {path}: {reason}" for path, reason in sorted(bad.items()))
            raise RunError(
                f"{len(bad)} images cannot be decoded, more than --max-bad {self.limit}; mend or remove them, or let "
                f"launch.prepare audit list them all:\n{listed}"
            )
