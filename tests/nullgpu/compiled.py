"""What is compiled for an H100 without one: the passes over memory that Inductor plans for the fused SE tail, and the
registers of the Triton kernels. Prints a line of JSON.

    python -m tests.nullgpu.compiled        on null GPUs, see README.md
"""

from __future__ import annotations

import json
import logging
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
import torch._inductor.config as inductor
import torch._inductor.metrics as metrics
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as to_ptx

from senet.config import SE, Bottleneck
from senet.execution import kernels, tail
from senet.models.resnet import Block

IMAGES = 64
SHAPES = ((256, 56), (2048, 7))  # channels and side of the first and the last blocks of SE-ResNet-50


def passes(channels: int, side: int) -> list[float]:
    """Return how often the planned code reads or writes a tensor of the size of the block's output: forward, backward,
    in bf16 and channels_last.
    """
    last = {"memory_format": torch.channels_last}
    block = Block(Bottleneck(), channels, channels // 4, 1, SE()).to("cuda", **last)

    def fused(x: Tensor, shortcut: Tensor) -> Tensor:
        return tail.analytic(x, shortcut, block.branch.bn3, block.se)

    torch._dynamo.reset()
    metrics.reset()
    shape = (IMAGES, channels, side, side)
    x, shortcut, grad = (
        torch.empty(shape, device="cuda", dtype=torch.bfloat16).contiguous(**last).requires_grad_() for _ in range(3)
    )
    with torch.autocast("cuda", torch.bfloat16):
        out = torch.compile(fused, fullgraph=True, dynamic=False)(x, shortcut)
    forward = metrics.num_bytes_accessed
    out.backward(grad)
    return [read / x.nbytes for read in (forward, metrics.num_bytes_accessed - forward)]


def registers(channels: int, side: int) -> dict[str, tuple[int, int]]:
    """Return for each Triton kernel the registers of a thread, and the bytes that it spills."""
    x = torch.empty(IMAGES, channels, side, side, device="meta").to(memory_format=torch.channels_last)
    pixels, across = kernels.tile(x)
    numbers = {"count": IMAGES, "channels": channels, "pixels": side * side, "length": kernels.split(x)[1]}
    aligned = next(size for size in (16, 8, 4, 2, 1) if side * side % size == 0)
    fixed = {"LAST": True, "ALIGNED": aligned, "PIXELS": pixels, "CHANNELS": across}
    return {
        kernel.__name__: _assembled(kernel, numbers, fixed)
        for kernel in (
            kernels.statistics_kernel,
            kernels.join_kernel,
            kernels.sums_kernel,
            kernels.gradient_kernel,
        )
    }


def _assembled(kernel: Any, numbers: dict[str, int], fixed: dict[str, Any]) -> tuple[int, int]:
    signature: dict[str, str] = {}
    constants, attributes = {}, {}
    for place, name in enumerate(kernel.arg_names):
        if name in fixed:
            signature[name], constants[(place,)] = "constexpr", fixed[name]
        elif name in numbers:
            signature[name] = "i32"
        else:
            low = name in ("x", "shortcut", "out", "grad", "d", "dx")
            signature[name] = "*bf16" if low else "*fp32"
        if name not in fixed and numbers.get(name, 16) % 16 == 0:
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    ptx = to_ptx(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4}).asm["ptx"]
    ptxas = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        words = [ptxas, "-v", "-arch=sm_90a", "-o", "/dev/null", file.name]
        said = subprocess.run(words, capture_output=True, text=True, check=True).stderr
    used, spilled = re.search(r"Used (\d+) registers", said), re.search(r"(\d+) bytes spill stores", said)
    assert used is not None
    return int(used[1]), int(spilled[1]) if spilled else 0


def main() -> None:
    torch._logging.set_logs(inductor_metrics=True)  # counts only when it is to log
    logging.getLogger("torch").handlers.clear()
    inductor.force_disable_caches, inductor.compile_threads = True, 1
    found = {f"{c} channels of {side} px": {"passes": passes(c, side), **registers(c, side)} for c, side in SHAPES}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
