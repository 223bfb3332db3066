"""What this machine reaches at best: bytes a second in a copy, FLOP a second in a matrix product. A roofline is drawn
with them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch

from senet.plan.traffic import Device
from senet.system.timing import synchronise


def probe(device: torch.device, dtype: torch.dtype, seconds: float = 0.5) -> Device:
    """Measure for about `seconds` each; the best of many goes counts, for it is a limit that is looked for."""
    gpu = device.type == "cuda"
    elements = (1 << 28) if gpu else (1 << 24)
    source = torch.ones(elements, device=device)
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / _best(partial(target.copy_, source), device, seconds)
    side = 8192 if gpu else 1024
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    product = 2 * side**3 / _best(partial(torch.mm, a, b), device, seconds)
    name = torch.cuda.get_device_name(device) if gpu else f"CPU, {torch.get_num_threads()} threads"
    kind = str(dtype).removeprefix("torch.")
    return Device(
        name, copied, product, f"measured: copy of {4 * elements >> 20} MiB, {kind} product of {side} x {side}"
    )


def _best(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Seconds of the fastest of several goes."""
    for _ in range(3):
        work()
    synchronise()
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 5 or (time.perf_counter() - began < seconds and len(times) < 1000):
        start = time.perf_counter()
        work()
        synchronise()
        times.append(time.perf_counter() - start)
    return min(times)
