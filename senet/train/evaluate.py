"""Validation: every image once over all ranks, whatever their number, in one view or several."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from senet.config import Config, Data, Folder
from senet.data.loader import Batch, ValLoader
from senet.distributed import World
from senet.errors import RunError, UsageError
from senet.train.meter import Meter
from senet.train.predictions import TOP, Predictions
from senet.train.trainer import precision, set_tf32


@dataclass(frozen=True)
class View:
    """How validation images are shown to a net: with shorter sides of `resize` pixels, of which it sees `crop` x `crop`
    in the centre; None is what the config says. The probabilities of several crops and of mirrored ones are averaged.
    """

    crop: int | None = None
    resize: int | None = None
    ten_crop: bool = False  # AlexNet's: the corners and the centre of the central square, and all mirrored
    flip: bool = False

    def of(self, data: Data) -> View:
        """Return the same view in pixels: a crop in the config's ratio to `resize`. Raises UsageError."""
        if not isinstance(data, Folder):
            if self != View(flip=self.flip):
                raise UsageError(f"--crop, --resize and --ten-crop would have no effect: {data.set} is shown whole")
            return View(data.crop, data.crop, flip=self.flip)
        crop = self.crop or data.crop
        resize = self.resize or (data.resize if self.crop is None else crop * data.resize // data.crop)
        if crop > resize:
            raise UsageError(f"--crop {crop} is larger than --resize {resize}; make it at most that")
        return dataclasses.replace(self, crop=crop, resize=resize)

    def data(self, data: Data) -> Data:
        """Return what a loader must cut out for this view, in pixels."""
        if self == View() or not isinstance(data, Folder):
            return data
        assert self.crop is not None
        assert self.resize is not None
        return dataclasses.replace(data, crop=self.resize if self.ten_crop else self.crop, resize=self.resize)

    def pictures(self, images: Tensor) -> list[Tensor]:
        """Return what the net sees of [b, 3, H, W], each [b, 3, h, w]."""
        shown = [images]
        if self.ten_crop:
            size, rest = self.crop, images.shape[2] - (self.crop or 0)
            corners = [(0, 0), (0, rest), (rest, 0), (rest, rest), (rest // 2, rest // 2)]
            shown = [images[:, :, y:, x:][:, :, :size, :size] for y, x in corners]
        return shown + [picture.flip(3) for picture in shown] * (self.flip or self.ten_crop)

    def logits(self, net: nn.Module, images: Tensor) -> Tensor:
        """Return the logits [b, classes] of a batch in float32: those of the net, or the logarithm of the mean of its
        probabilities if it is shown several pictures of each image.
        """
        every = [net(picture).float() for picture in self.pictures(images)]
        return every[0] if len(every) == 1 else fuse([logits.log_softmax(1) for logits in every])

    def __str__(self) -> str:
        crops = ["ten crops"] if self.ten_crop else ["mirrored, too"] * self.flip
        return ", ".join([f"{self.crop} px of {self.resize}", *crops])


@torch.inference_mode()
def evaluate(
    net: nn.Module,
    loader: ValLoader,
    config: Config,
    world: World,
    stop: Callable[[], bool] = lambda: False,
    view: View | None = None,
    keep: Callable[[Batch, Tensor], object] = lambda batch, logits: None,
) -> dict[str, float]:
    """Return `images` counted, `loss` (without label smoothing), `top1_error` and `top5_error` in percent.

    All ranks call it and get the same. `net` is the bare module, left in evaluation mode: ranks have unequal numbers of
    batches, so nothing in here may be a collective but the one sum at the end. `stop`, asked after each batch, ends
    this rank's part early; `keep` is given each batch and its logits. An image with label -1 counts as wrong. Raises
    RunError if not one image could be decoded.
    """
    net.eval()
    set_tf32(config)
    meter, view = Meter(world.device), view or View()
    size = 0
    for batch in loader.batches():
        images, labels = batch.images, batch.labels
        size = max(size, len(images))
        # The last batch is smaller: filled up, it needs no code, and no choice of algorithms, of its own.
        full = images if len(images) == size else F.pad(images, (0, 0, 0, 0, 0, 0, 0, size - len(images)))
        with precision(config, world.device):
            logits = view.logits(net, full)[: len(images)]
        meter.add(F.cross_entropy(logits, labels, reduction="none", ignore_index=-1), logits, labels)
        keep(batch, logits)
        if stop():
            break
    errors = meter.read(world.all_reduce_sum(meter.sums))
    if not errors["images"] and not stop():
        raise RunError("not one image could be decoded; launch.prepare audit says of a data set what is wrong with it")
    return errors


def fuse(every: Sequence[Tensor]) -> Tensor:
    """Return the logarithm of the mean of probabilities that are given by their logarithms, each [n, classes]."""
    return torch.stack(list(every)).logsumexp(0) - np.log(len(every))


class Pass:
    """What a net says of this rank's images in one pass over them: `keep` is for `evaluate`."""

    def __init__(self) -> None:
        self.keys, self.labels, self.logs = (torch.empty(0, dtype=torch.int64) for _ in range(3))
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def keep(self, batch: Batch, logits: Tensor) -> None:
        assert batch.keys is not None
        self._parts.append((torch.from_numpy(batch.keys), batch.labels.cpu(), logits.log_softmax(1).cpu()))

    def done(self) -> None:
        """Join what was kept: keys [n], labels [n], logarithms of probabilities [n, classes]."""
        if self._parts:
            self.keys, self.labels, self.logs = (torch.cat(parts) for parts in zip(*self._parts, strict=True))
            self._parts.clear()


def fused(passes: Sequence[Pass], world: World, top: int = TOP) -> tuple[dict[str, float], Predictions]:
    """Return errors as `evaluate`, and the predictions of all ranks' images, `top` classes of each, of the mean of the
    passes' probabilities.

    All ranks call it and get the same. Raises RunError if the passes did not see the same images.
    """
    for each in passes:
        each.done()
        if not torch.equal(each.keys, passes[0].keys):
            raise RunError("an image was decoded in one pass and not in another; run launch.prepare audit on the data")
    keys, labels, logs = passes[0].keys, passes[0].labels, [each.logs for each in passes]
    meter, own = Meter(torch.device("cpu")), Predictions.none()
    if len(keys):
        mean = logs[0] if len(logs) == 1 else fuse(logs)
        meter.add(F.nll_loss(mean, labels, reduction="none", ignore_index=-1), mean, labels)
        own = Predictions.of(keys.numpy(), labels.numpy(), mean, top)
    told = world.all_gather_object((meter.sums, own))
    total = torch.stack([sums for sums, _ in told]).sum(0)
    return meter.read(total), Predictions.joined([part for _, part in told])
