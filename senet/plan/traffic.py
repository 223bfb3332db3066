"""What a net does to one training image: arithmetic, and the memory traffic that bounds it.

On today's GPUs these nets are bound by the traffic of what stands between the convolutions, not by multiply-adds. Traffic is counted in
passes, each one read or write of an activation tensor:

    kind                                  eager   compiled   tail    fused
    convolution, of its input and output    3        3         3       3     forward, by input, by weight
    batch normalisation                     8        8         8       5     3 + 5; fused: statistics come with the convolution before
    activation                              5        0         0       0     2 + 3; else part of its neighbours
    residual sum                            3 + 3    6.5       6.5     3     with the join of its gradients; 3.5 with what it is fused to
    scaling by gates (SE)                  11        5         0.5     0     3 + 8; the pooling of BN's output is free in the analytic form
    max pooling                             4        4         4       4

eager is PyTorch as it comes, compiled is Inductor on the plain module, tail the analytic form of BN -> SE -> sum -> ReLU, fused what
NVIDIA's MLPerf entry does (statistics in a convolution's epilogue, BN and ReLU in the next one's prologue).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from senet.config import Net
from senet.models import build

Stack = Literal["eager", "compiled", "tail", "fused"]
PASSES: dict[Stack, dict[str, float]] = {
    "eager": {"norm": 8, "activation": 5, "sum": 6, "scale": 11, "pool": 4},
    "compiled": {"norm": 8, "activation": 0, "sum": 6.5, "scale": 5, "pool": 4},
    "tail": {"norm": 8, "activation": 0, "sum": 6.5, "scale": 0.5, "pool": 4},
    "fused": {"norm": 5, "activation": 0, "sum": 3, "scale": 0, "pool": 4},
}
TILE = 32  # channels a group is filled up to, where a grouped convolution has fewer: its arithmetic is wasted, its traffic is not
IMAGES = 2  # traced, so that a batch is told from a constant


@dataclass(frozen=True)
class Conv:
    """One convolution and one image: elements read and written, multiply-adds as the tensor cores do them."""

    inputs: float
    outputs: float
    macs: float
    of_image: bool  # the first: no gradient of its input


@dataclass(frozen=True)
class Traffic:
    """Of one image: elements that each kind of operation works on."""

    parameters: int
    macs: float
    convs: tuple[Conv, ...]
    elements: dict[str, float]
    operations: int  # forward, each a kernel or so

    def megabytes(self, stack: Stack, bytes_each: int = 2) -> float:
        """Read and written in training, one image."""
        convs = 3 * sum(conv.inputs + conv.outputs for conv in self.convs)
        return bytes_each * (convs + self.between(stack)) / 1e6

    def between(self, stack: Stack) -> float:
        """Elements read and written outside convolutions."""
        return sum(PASSES[stack][kind] * count for kind, count in self.elements.items())

    def seconds(self, stack: Stack, flops: float, bandwidth: float, bytes_each: int = 2) -> float:
        """The least that training on one image can take: each convolution bound by arithmetic or memory, the rest by memory.

        `flops` and `bandwidth` are what the device reaches, a second; bandwidth in bytes.
        """
        total = self.between(stack) * bytes_each / bandwidth
        for conv in self.convs:
            memory = (conv.inputs + conv.outputs) * bytes_each / bandwidth
            total += (2 if conv.of_image else 3) * max(2 * conv.macs / flops, memory)
        return total

    def stored(self, bytes_each: int = 2) -> float:
        """Bytes kept for the backward pass, one image: inputs of convolutions and of normalisations, and what SE scales."""
        kept = sum(conv.inputs for conv in self.convs) + self.elements["norm"] + self.elements["scale"]
        return bytes_each * kept


class _Trace(TorchDispatchMode):
    """Sums up the operations of a forward pass; shapes suffice, so it runs on the meta device."""

    def __init__(self) -> None:
        super().__init__()
        self.convs: list[Conv] = []
        self.elements = dict.fromkeys(("norm", "activation", "sum", "scale", "pool"), 0.0)
        self.macs = 0.0
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        output = result[0] if isinstance(result, tuple | list) else result
        if isinstance(output, Tensor):
            self._count(func.overloadpacket.__name__.rstrip("_"), args, output)
        return result

    def _count(self, name: str, args: tuple[Any, ...], output: Tensor) -> None:
        shapes = [part.shape for part in args if isinstance(part, Tensor)]
        if name in VIEWS or not shapes:
            return
        self.operations += 1
        if name == "convolution":
            image, weight = args[:2]
            macs = output.numel() / IMAGES * weight[0].numel()
            self.macs += macs
            waste = max(1.0, TILE / weight.shape[1]) if weight.shape[0] > weight.shape[1] * 1.5 and args[8] > 1 else 1.0
            self.convs.append(Conv(image.numel() / IMAGES, output.numel() / IMAGES, macs * waste, of_image=not self.convs))
        elif name in ("addmm", "mm"):
            self.macs += output.numel() / IMAGES * args[-2].shape[-1]
        elif (kind := _kind(name, shapes)) is not None:
            self.elements[kind] += max(shape.numel() for shape in shapes) / IMAGES


VIEWS = {"detach", "view", "t", "transpose", "permute", "alias", "expand", "unsqueeze", "squeeze", "slice", "select", "empty", "as_strided"}
ACTIVATIONS = {"relu", "silu", "gelu", "sigmoid", "tanh", "hardswish", "hardsigmoid", "hardtanh", "leaky_relu", "threshold", "clamp"}


def _kind(name: str, shapes: list[torch.Size]) -> str | None:
    """The kind of an operation on activations [N, C, H, W]; None for what is too small to count."""
    if len(shapes[0]) < 3 or shapes[0][2:].numel() == 1:
        return None
    if name in ("native_batch_norm", "_native_batch_norm_legit", "native_layer_norm", "native_group_norm"):
        return "norm"
    if name in ("add", "sub"):
        return "sum"
    if name == "mul":
        return "scale"
    if name.startswith(("max_pool", "avg_pool")):
        return "pool"
    return "activation" if name in ACTIVATIONS else None


def trace(net: Net, classes: int, crop: int) -> Traffic:
    """Count one training image of `crop` pixels through a net, without memory, data or GPU."""
    with torch.device("meta"):
        module = build(net, classes).train()
        images = torch.empty(IMAGES, 3, crop, crop)
        with _Trace() as seen, torch.no_grad():
            module(images)
    parameters = sum(part.numel() for part in module.parameters() if part.requires_grad)
    return Traffic(parameters, seen.macs, tuple(seen.convs), seen.elements, seen.operations)
