"""Loss and errors, summed on the device and read once per interval."""

from __future__ import annotations

import math

import torch
from torch import Tensor

FRACTION = 2**24  # of the loss, in fixed point
FIELDS = 5  # loss, top-1 hits, top-5 hits, images, images whose loss is not finite


class Meter:
    """Sums over images as int64, on the device.

    Integers add up to the same in any order, so a figure does not depend on how many ranks there were or after
    which step a run was resumed. `add` never waits for the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(FIELDS, dtype=torch.int64, device=device)

    @torch.no_grad()
    def add(self, losses: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: `losses` float [b], `logits` [b, classes], `labels` int64 [b]."""
        finite = losses.isfinite()
        fixed = (losses.double().where(finite, 0.0) * FRACTION).round().long()
        hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        count = torch.full_like(self.sums[0], len(labels))
        self.sums += torch.stack([fixed.sum(), hits[:, 0].sum(), hits.sum(), count, (~finite).sum()])

    def restore(self, sums: Tensor | None) -> None:
        """Begin anew, or go on with `sums`. Those of another version, with fewer or other figures, are let go of."""
        self.sums.zero_()
        if sums is not None and sums.shape == self.sums.shape:
            self.sums.copy_(sums)

    def read(self, total: Tensor | None = None) -> dict[str, float]:
        """Return `loss` (the mean; NaN if any was not finite), `top1_error` and `top5_error` in percent, and `images`.

        They are those of `total`, sums over ranks, if it is given. Waits for the device.
        """
        loss, top1, top5, images, bad = (self.sums if total is None else total).tolist()
        count = images or math.nan
        mean = math.nan if bad else loss / FRACTION / count
        errors = {"top1_error": 100 * (1 - top1 / count), "top5_error": 100 * (1 - top5 / count)}
        return {"loss": mean, **errors, "images": images}
