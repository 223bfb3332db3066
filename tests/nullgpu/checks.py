"""What tests/nullgpu does within one process; each check prints one line of JSON, with its result or its error.

python -m tests.nullgpu.checks NAME ...        on null GPUs, see README.md
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from senet import config as config_of
from senet import distributed
from senet.config import Cifar10, Config, from_dict
from senet.data.device import DevicePipeline
from senet.data.memory import InMemory
from senet.data.sampler import TrainSampler
from senet.data.source import Source, train_loader
from senet.execution.execution import Execution, choices
from senet.models import build
from senet.run.saver import Saver, snapshot
from senet.run.state import State
from senet.system.run_folder import CheckpointFolder
from senet.train.autotune import tune
from senet.train.ema import EMA
from senet.train.largest_batch import largest_batch
from senet.train.meter import Meter
from senet.train.trainer import DTYPES, Trainer

GPU = torch.device("cuda", 0)
ALONE = distributed.World(0, 1, GPU)
SMALL = {"block": "basic", "blocks": [1, 1], "widths": [16, 32], "expansion": 1, "stem": "cifar", "se": {"ratio": 4}}
SIMPLE = Execution()


def config(**changes: Any) -> Config:
    data = {"set": "synthetic", "classes": 10, "crop": 32, "train_images": 640, "val_images": 64}
    base = from_dict({"net": SMALL, "data": data, "batch": 32, "precision": "bf16"})
    return replace(base, **changes)


def augmented(**augment: Any) -> Config:
    base = config()
    return replace(base, data=replace(base.data, augment=replace(base.data.augment, **augment)))


def stat(name: str) -> int:
    library = ctypes.CDLL(os.environ["NULLGPU_LIBRARY"])
    library.null_stat.restype = ctypes.c_long
    return int(library.null_stat(name.encode()))


def assemble(config: Config, execution: Execution = SIMPLE, world: distributed.World = ALONE) -> Trainer:
    return Trainer.build(config, world, execution, EMA(config.ema) if config.ema else None)


@contextmanager
def refusing_waits() -> Iterator[None]:
    """Within it, whatever makes the host wait for the device raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def steps(config: Config, execution: Execution = SIMPLE, world: distributed.World = ALONE) -> Counter[str]:
    """Make two steps, then three during which nothing may wait; returns how often each layout of a convolution's output
    was seen.
    """
    trainer = assemble(config, execution, world)
    share = config.batch // world.size
    loader = train_loader(
        config.data, Source(), config.batch, share, 0, world.rank, world.size, world.device, DTYPES[config.precision]
    )
    loader.memory_format = execution.memory_format
    found: Counter[str] = Counter()

    def look(module: nn.Module, images: Any, output: torch.Tensor) -> None:
        last = output.is_contiguous(memory_format=torch.channels_last)
        found["contiguous" if output.is_contiguous() else "channels_last" if last else "neither"] += 1

    if not execution.compile:
        for module in trainer.net.modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1):
                module.register_forward_hook(look)
    made = trainer.steps(loader, 0, 0, Meter(world.device))
    next(made), next(made)
    with refusing_waits():
        for _ in range(3):
            next(made)
    made.close()
    return found


# --------------------------------------------------------------------------------------------------------------- checks


def executions() -> dict[str, Any]:
    """Steps in executions of every kind, with an average of the weights; also with BN frozen."""
    wanted = [
        Execution(),
        Execution("contiguous"),
        Execution(tail="triton"),
        Execution(graph=True),
        Execution(tail="analytic", compile=True),
    ]
    found = {str(execution): steps(config(ema=config_of.EMA()), execution) for execution in wanted}
    frozen = config(bn=config_of.BatchNorm(freeze=0))
    return found | {f"{execution} frozen": steps(frozen, execution) for execution in wanted[2:4]}


def all_executions() -> dict[str, Any]:
    """Steps in all executions that are worth timing, in all precisions without a compiler."""
    with torch.device("meta"):
        net = build(config().net, 10)
    found = {str(execution): steps(config(), execution) for execution in choices(net, GPU)}
    for precision in ("fp32", "fp16"):
        for execution in (Execution(), Execution(graph=True)):
            found[f"{execution} {precision}"] = steps(config(precision=precision), execution)
    return found


def augmentations() -> dict[str, Any]:
    """Steps on images that are augmented on the device, in ways that the loop must not wait for either."""
    kinds = {
        "erase": {"erase": 0.5, "cutout": 8},
        "mix": {"mixup": 0.2, "cutmix": 1.0},
        "colour": {"color_jitter": (0.4, 0.4, 0.4, 0.1), "lighting": 0.1},
        "rotate": {"rotate": 10.0},
    }
    found = {}
    for name, augment in kinds.items():
        try:
            found[name] = dict(steps(augmented(**augment)))
        except RuntimeError as error:
            found[name] = {str(error).splitlines()[0][:200]: 1}
    return found


def small_batches() -> float:
    """Kernels that a loader of CIFAR starts for each batch of 128 images."""
    data = Cifar10()
    memory = InMemory(
        np.zeros((12800, 32, 32, 3), np.uint8),
        np.zeros(12800, np.int64),
        data,
        TrainSampler(12800, 128, 128, 0, 0, 1),
        GPU,
    )
    batches = DevicePipeline(data, GPU, None, torch.bfloat16)(lambda: memory.batches(0, 90))
    before, made = stat("kernels"), len(list(batches))
    return (stat("kernels") - before) / made


def saves() -> dict[str, int]:
    """Bytes on the device before a checkpoint and after it is written."""
    trainer = assemble(config())
    state = State(trainer, 20)
    with tempfile.TemporaryDirectory() as folder:
        saver = Saver(CheckpointFolder(Path(folder)), keep=1)
        before = torch.cuda.memory_allocated()
        saver.save(state.pack(), {}, [])
        saver.finish()
        after = torch.cuda.memory_allocated()
        saver.close()
    return {"before": before, "after": after, "net": sum(p.nbytes for p in trainer.net.parameters())}


def probes() -> dict[str, Any]:
    """The largest batch of SE-ResNet-50 that is found, what the search leaves on the device, and whether the batch fits
    beside what a run holds: the snapshot of a checkpoint and a loader's batches.
    """
    data = {"set": "synthetic", "classes": 1000, "crop": 64, "train_images": 1 << 14, "val_images": 64}
    large = from_dict({"net": {"se": {}}, "data": data, "batch": 1 << 14, "precision": "bf16"})
    before = torch.cuda.memory_allocated()
    found = largest_batch(large, ALONE, Execution())
    left = torch.cuda.memory_allocated() - before
    trainer = Trainer.build(large, ALONE, Execution())
    state = State(trainer, 20)
    held = snapshot(state.pack())
    loader = train_loader(large.data, Source(), large.batch, found, 0, 0, 1, GPU, DTYPES["bf16"])
    made = trainer.steps(loader, 0, 0, state.interval)
    next(made)
    del held
    return {"found": found, "left": left}


def tuning() -> str:
    """An execution that was chosen by timing all."""
    return str(tune(config(), ALONE, 32, seconds=0.1))


CHECKS: dict[str, Callable[[], Any]] = {
    check.__name__: check for check in (executions, all_executions, augmentations, small_batches, saves, probes, tuning)
}


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    torch.cuda.set_device(GPU)
    for name in names:
        try:
            told = {"check": name, "result": CHECKS[name](), "strays": stat("strays")}
        except Exception:
            told = {"check": name, "error": traceback.format_exc()}
        os.write(1, (json.dumps(told) + "\n").encode())


if __name__ == "__main__":
    main(sys.argv[1:])
