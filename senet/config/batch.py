"""Divides a global batch over ranks and micro-batches, and says how large its images are."""

from senet.config.schema import Data, Folder
from senet.errors import UsageError


def crop_at(data: Data, epoch: int) -> int:
    """Return the side of training images in an epoch, in pixels; with progressive resizing a multiple of 16."""
    grow = data.augment.grow if isinstance(data, Folder) else None
    if grow is None or epoch >= grow.epochs:
        return data.crop
    grown = grow.start + (data.crop - grow.start) * epoch / grow.epochs
    return max(grow.start, int(grown) // 16 * 16)


def divide_batch(batch: int, world: int, largest: int | None = None) -> tuple[int, int]:
    """Divide a global batch over `world` ranks: (images of a micro-batch, of at most `largest`; micro-batches that a
    rank accumulates a step). Raises UsageError listing sizes that do divide.
    """
    if batch % world:
        low = batch // world * world
        near = ", ".join(str(size) for size in (low, low + world) if size)
        fitting = [str(number) for number in range(1, batch + 1) if batch % number == 0]
        ranks = ", ".join(fitting[:12]) + ", ..." * (len(fitting) > 12)
        raise UsageError(f"batch: {batch} does not divide over {world} ranks; use batch={near} or {ranks} ranks")
    per_rank = batch // world
    micro_batch = max(d for d in range(1, min(per_rank, largest or per_rank) + 1) if per_rank % d == 0)
    return micro_batch, per_rank // micro_batch
