"""GPUs: what they reach in practice, which is less than the data sheet says."""

from __future__ import annotations

import re
from dataclasses import dataclass

from senet.config.files import nearest
from senet.errors import UsageError
from senet.plan.traffic import Device


@dataclass(frozen=True)
class GPU:
    memory: float  # GB
    half: float  # TFLOP/s of matrix products in bf16 or fp16 ...
    tf32: float  # ... in TF32, which V100 does not have ...
    fp32: float  # ... and in fp32
    bandwidth: float  # TB/s of a copy
    link: float  # GB/s of an all-reduce within a node (NCCL's bus bandwidth)
    network: float  # GB/s a GPU between nodes, unless --network says otherwise
    decode: float | None  # JPEGs/s by its own decoder; None: it has none, or none was measured
    source: str  # of `half` and `bandwidth`


MLPERF = "decoding as in MLPerf v4.0: at least that, with six CPU threads a GPU, some of it cached"
GPUS = {
    "b200": GPU(180, 1700, 850, 60, 7.0, 800, 45, None, "assumed: three quarters of the data sheet"),
    "h200": GPU(141, 790, 395, 50, 4.3, 470, 45, 7942, f"measured; {MLPERF}"),
    "h100": GPU(80, 700, 350, 50, 3.0, 470, 45, 7165, f"assumed; {MLPERF}"),
    "a100": GPU(80, 250, 125, 15, 1.75, 240, 22, 7000, "assumed; decoding by NVIDIA's blog"),
    "v100": GPU(16, 100, 14, 14, 0.8, 130, 5, None, "assumed"),
    "l40s": GPU(48, 250, 125, 60, 0.8, 40, 5, None, "assumed"),
    "rtx4090": GPU(24, 140, 70, 55, 0.93, 20, 1.2, None, "assumed"),
    "rtx3090": GPU(24, 70, 35, 25, 0.84, 20, 1.2, None, "assumed"),
}
OTHER_CARDS = ("pcie", "nvl", "laptop")  # slower ones that share a name with those above


def called(full: str) -> str | None:
    """Return the name in GPUS of what the driver calls, say, `NVIDIA H100 80GB HBM3`; None for another."""
    words = re.split(r"[^a-z0-9]+", full.lower().replace("rtx ", "rtx"))
    return None if any(word in OTHER_CARDS for word in words) else next((name for name in GPUS if name in words), None)


def device(name: str, precision: str) -> Device:
    """Return what a GPU reaches, as a roofline takes it. Raises UsageError."""
    gpu = find(name)
    products = {"tf32": gpu.tf32, "fp32": gpu.fp32}.get(precision, gpu.half)
    return Device(name, gpu.bandwidth * 1e12, products * 1e12, gpu.source)


def find(name: str) -> GPU:
    """Return a GPU of any spelling in upper or lower case. Raises UsageError naming the nearest."""
    if name.lower() not in GPUS:
        raise UsageError(f"--gpu {name}: not known{nearest(name.lower(), GPUS)}")
    return GPUS[name.lower()]
