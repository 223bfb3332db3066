"""Fractional epoch -> learning rate, a pure function: nothing to save, nothing to get out of step."""

import math

from senet.config import Schedule


def learning_rate(schedule: Schedule, lr: float, epoch: float, epochs: int) -> float:
    """The learning rate at `epoch` (fractional, from 0) of a run of `epochs`, `lr` being that of the recipe (section
    5.1).

    step: lr times gamma for each milestone reached. cosine: a half period from lr to 0, over what follows the warm-up.
    Warm-up, before `warmup_epochs`: linear from `warmup_lr`, or constant at it (ResNet-110 of "Identity Mappings"
    starts so).
    """
    if schedule.warmup != "none" and epoch < schedule.warmup_epochs:
        done = epoch / schedule.warmup_epochs if schedule.warmup == "linear" else 0.0
        return schedule.warmup_lr + (lr - schedule.warmup_lr) * done
    if schedule.shape == "step":
        return lr * schedule.gamma ** sum(epoch >= milestone for milestone in schedule.milestones)
    start = schedule.warmup_epochs
    done = min(1.0, (epoch - start) / (epochs - start)) if epochs > start else 1.0
    return lr * 0.5 * (1 + math.cos(math.pi * done))
