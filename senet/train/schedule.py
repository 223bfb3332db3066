"""Fractional epoch, and validation losses -> learning rate: pure, so that nothing gets out of step."""

import math
from collections.abc import Sequence

from senet.config import LinearWarmup, Plateau, Poly, Schedule, Step


def learning_rate(schedule: Schedule, lr: float, epoch: float, epochs: int, losses: Sequence[float] = ()) -> float:
    """Compute the learning rate at `epoch` (fractional, from 0) of a run of `epochs`; `lr` is that of the recipe
    (section 5.1), `losses` are those of the validations so far.

    Step: lr times gamma for each milestone reached. Plateau: lr times factor for each time that the losses stopped
    falling. Over what follows the warm-up, cosine: a half period from lr to 0; poly: lr times a power of what is left
    (MLPerf and NVIDIA have squares). Warm-up: linear from its lr, or constant at it (ResNet-110 of "Identity Mappings"
    starts this way).
    """
    warmup = schedule.warmup
    if warmup and epoch < warmup.epochs:
        done = epoch / warmup.epochs if isinstance(warmup, LinearWarmup) else 0.0
        return warmup.lr + (lr - warmup.lr) * done
    if isinstance(schedule, Step):
        return lr * schedule.gamma ** sum(epoch >= milestone for milestone in schedule.milestones)
    if isinstance(schedule, Plateau):
        return lr * schedule.factor ** stalls(schedule, losses)
    start = warmup.epochs if warmup else 0.0
    done = min(1.0, (epoch - start) / (epochs - start)) if epochs > start else 1.0
    if isinstance(schedule, Poly):
        return lr * (1 - done) ** schedule.power
    return lr * 0.5 * (1 + math.cos(math.pi * done))


def stalls(schedule: Plateau, losses: Sequence[float]) -> int:
    """Return how often `losses`, one an epoch, went without a better one for longer than the schedule's patience."""
    best, waited, found = math.inf, 0, 0
    for loss in losses:
        if loss < best * (1 - schedule.threshold):
            best, waited = loss, 0
            continue
        waited += 1
        if waited > schedule.patience:
            waited, found = 0, found + 1
    return found
