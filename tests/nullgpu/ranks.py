"""What tests/nullgpu does on two ranks; each prints one line of JSON.

python -m torch.distributed.run --standalone --nproc-per-node=2 -m tests.nullgpu.ranks        see README.md
"""

from __future__ import annotations

import json
import os
import traceback
from typing import Any

import torch

from senet import distributed
from senet.config import from_dict
from senet.execution.execution import Execution
from senet.run.state import State
from tests.nullgpu.checks import assemble, config, stat, steps


def without_batchnorm(world: distributed.World) -> list[str]:
    """What a checkpoint of a net without batch normalisation holds of its statistics."""
    data = {"set": "synthetic", "classes": 10, "crop": 32, "train_images": 64, "val_images": 64}
    settings = from_dict({"net": {"timm": "test_vit"}, "data": data, "batch": 4})
    trainer = assemble(settings, world=world)
    state = State(trainer, 16)
    statistics = state.pack().statistics
    return [] if statistics is None else [str(statistics.device), str(list(statistics.shape))]


def main() -> None:
    torch.set_num_threads(1)
    world = distributed.start("cuda")
    told: dict[str, Any] = {"rank": world.rank}
    for execution in (Execution(), Execution("contiguous", tail="triton")):
        told[str(execution)] = steps(config(), execution, world)
    try:
        told["without BN"] = without_batchnorm(world)
    except Exception:
        told["without BN"] = traceback.format_exc()
    told |= {"contexts": stat("contexts"), "strays": stat("strays")}
    os.write(1, (json.dumps(told) + "\n").encode())
    world.close()


if __name__ == "__main__":
    main()
