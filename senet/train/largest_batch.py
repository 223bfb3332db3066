"""How many images a GPU can hold at once, tried out beside all else that a run holds there."""

from __future__ import annotations

import bisect

import torch

from senet.config import Config, crop_at
from senet.distributed import World
from senet.errors import UsageError
from senet.execution.execution import Execution
from senet.models import build
from senet.system.timing import free, synchronise
from senet.train.autotune import stepper
from senet.train.trainer import DTYPES

SPARE = 0.93  # of the GPU's memory that torch may take meanwhile
OUTSIDE = 1 << 30  # bytes, if that is more: what CUDA, cuDNN and NCCL hold beside torch
WAITING = 2  # batches that the loader has on the device beside the one that is computed
DECODED = 4 << 20  # bytes on the device for each image that DALI decodes: files, whole images, batches in its pipeline


def largest_batch(config: Config, world: World, execution: Execution) -> int:
    """Return the most images of the config's batch that each rank can hold at once, a divisor of its part of the batch.

    All ranks call it and get the same. Raises UsageError on a CPU, whose memory swaps before it ends, and if not even
    one image fits.
    """
    if world.device.type != "cuda":
        raise UsageError("--largest-batch auto: needs a GPU, whose memory ends where it ends; give a number")
    per_rank = config.batch // world.size
    total = torch.cuda.get_device_properties(world.device).total_memory

    def fits(size: int) -> bool:
        try:
            _probe(config, world, size, execution)
            return True
        except torch.OutOfMemoryError:
            return False
        finally:
            free()

    torch.cuda.set_per_process_memory_fraction(min(SPARE, max(0.5, 1 - OUTSIDE / total)), world.device)
    try:
        with torch.random.fork_rng([world.device]):
            sizes = [size for size in range(least_batch(config), per_rank + 1) if per_rank % size == 0]
            fitting = bisect.bisect_left(sizes, True, key=lambda size: not fits(size))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, world.device)
    least: int = min(world.all_gather_object(fitting))
    if not least:
        fewest = "not even the fewest images that can be computed at once fit the GPU's memory"
        raise UsageError(f"--largest-batch auto: {fewest}; use a smaller net or data.crop")
    return sizes[least - 1]


def least_batch(config: Config) -> int:
    """Return how few images of a training can be computed at once: 2 if the net's maps shrink to one pixel, of which
    batch normalisation needs two values, otherwise 1.
    """
    side = crop_at(config.data, 0)
    try:
        with torch.device("meta"):
            build(config.net, config.data.classes).train()(torch.empty(1, 3, side, side))
    except ValueError:
        return 2
    return 1


def _probe(config: Config, world: World, size: int, execution: Execution) -> None:
    """Make two steps of `size` images beside all that a run holds on the device at the same time: batches that wait,
    DALI's buffers, the snapshot of a checkpoint (weights and momenta), an average of the weights in both and, with
    several ranks, DDP's buckets.
    """
    step = stepper(config, World(0, 1, world.device), size, execution)
    with torch.device("meta"):
        weights = sum(p.numel() * p.element_size() for p in build(config.net, config.data.classes).parameters())
    image = 3 * config.data.crop**2 * (1 + torch.finfo(DTYPES[config.precision]).bits // 8)
    held = (2 + 2 * (config.ema is not None)) * weights + WAITING * size * image
    held += size * DECODED if config.data.set == "folder" else 0
    held += weights + weights // 2 * (config.compress != "none") if world.size > 1 else 0
    beside = torch.empty(held, dtype=torch.uint8, device=world.device)
    for _ in range(2):  # the second has the gradients' and libraries' memory of the first beside its own
        step()
    synchronise()
    del beside
