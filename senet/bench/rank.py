"""One rank of the scaling bench; started by torchrun, it writes what it saw to a folder."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from senet import config, distributed
from senet.bench.contestants import Endless
from senet.data.loader import Batch
from senet.execution.execution import Execution
from senet.system.timing import synchronise
from senet.train.meter import Meter
from senet.train.trainer import Trainer

WIDTH = {
    "float": 4,
    "double": 8,
    "c10::BFloat16": 2,
    "c10::Half": 2,
    "long int": 8,
    "long": 8,
    "int": 4,
    "unsigned char": 1,
    "bool": 1,
}


def main(settings: dict[str, Any], out: Path) -> None:
    """`settings`: config (as plain data), device, parts (micro-batches of the global batch over all ranks), steps,
    timed.
    """
    world = distributed.start(settings["device"])
    try:
        loaded = config.from_dict(settings["config"])
        trainer = Trainer.build(loaded, world, Execution())
        net = trainer.net
        meter = Meter(world.device)
        parts = _parts(loaded, settings["parts"], world.device)[world.rank :: world.size] if world.size > 1 else None
        loader: Any = Endless(*(parts or _parts(loaded, settings["parts"], world.device)))

        net.train()
        for number, batch in enumerate(loader.micro):
            trainer.backward(batch, meter, last=number == len(loader.micro) - 1)
        gradients = _vector([p.grad for p in net.parameters() if p.grad is not None])
        trainer.optimiser.zero_grad(set_to_none=True)

        steps = trainer.steps(loader, 0, 0, meter)
        for _ in range(settings["steps"]):
            next(steps)
        parameters = _vector([p.detach() for p in net.parameters()])
        seen = _collectives(lambda: next(steps))
        times = []
        for _ in range(settings["timed"]):
            began = time.perf_counter()
            next(steps)
            synchronise()
            times.append(time.perf_counter() - began)
        torch.save({"gradients": gradients, "parameters": parameters}, out / f"rank{world.rank}.pt")
        digest = hashlib.sha256(parameters.numpy().tobytes()).hexdigest()
        buckets = _buckets(trainer.model)
        facts = {
            "digest": digest,
            "collectives": seen,
            "seconds": times,
            "buckets": buckets,
            "trainable": gradients.numel(),
        }
        (out / f"rank{world.rank}.json").write_text(json.dumps(facts))
    finally:
        world.close()


def _parts(settings: config.Config, parts: int, device: torch.device) -> list[Batch]:
    """The global batch in equal micro-batches, the same on any number of ranks."""
    generator = torch.Generator().manual_seed(1)
    crop = settings.data.crop
    images = (
        torch.randn(settings.batch, 3, crop, crop, generator=generator)
        .to(device)
        .contiguous(memory_format=torch.channels_last)
    )
    labels = torch.randint(settings.data.classes, (settings.batch,), generator=generator).to(device)
    return [Batch(*pair) for pair in zip(images.chunk(parts), labels.chunk(parts), strict=True)]


def _vector(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors]).float().cpu()


def _buckets(model: nn.Module) -> int | None:
    """Into how many pieces DDP has cut the gradients."""
    data: dict[str, Any] = getattr(model, "_get_ddp_logging_data", dict)()
    sizes = str(data.get("rebuilt_bucket_sizes") or data.get("bucket_sizes") or "")
    return len(re.findall(r"\d+", sizes)) or None


def _collectives(step: Any) -> list[tuple[str, int]]:
    """(kind, bytes) of each collective of a step, as PyTorch's profiler sees them."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        step()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        events = json.loads(file.read_text())["traceEvents"]
    found = []
    for event in events:
        name, facts = event.get("name", ""), event.get("args", {})
        if re.match("(gloo|nccl):", name) and "Input Dims" in facts:
            described = zip(facts["Input Dims"], facts["Input type"], strict=True)
            sizes = [torch.Size(dims).numel() * WIDTH.get(kind, 0) for dims, kind in described]
            found.append((name.partition(":")[2], sum(sizes)))
    return found


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
