"""Fractional epoch -> learning rate, a pure function: nothing to save, nothing to get out of step."""

import math

from senet.config import LinearWarmup, Schedule, Step


def learning_rate(schedule: Schedule, lr: float, epoch: float, epochs: int) -> float:
    """Compute the learning rate at `epoch` (fractional, from 0) of a run of `epochs`; `lr` is that of the recipe
    (section 5.1).

    Step: lr times gamma for each milestone reached. Cosine: a half period from lr to 0, over what follows the warm-up.
    Warm-up: linear from its lr, or constant at it (ResNet-110 of "Identity Mappings" starts this way).
    """
    warmup = schedule.warmup
    if warmup and epoch < warmup.epochs:
        done = epoch / warmup.epochs if isinstance(warmup, LinearWarmup) else 0.0
        return warmup.lr + (lr - warmup.lr) * done
    if isinstance(schedule, Step):
        return lr * schedule.gamma ** sum(epoch >= milestone for milestone in schedule.milestones)
    start = warmup.epochs if warmup else 0.0
    done = min(1.0, (epoch - start) / (epochs - start)) if epochs > start else 1.0
    return lr * 0.5 * (1 + math.cos(math.pi * done))
