"""The bytes that a training step must move and the multiply-adds it must do, an image at a time, and how fast a device
could do that at best.

Convolutional nets are bound by memory: every activation is read and written many times around the convolutions. A pass
is one read or one write of a whole activation tensor. How many there are depends on the stack, the way a net is
computed:

    eager     PyTorch as it comes: each operation by itself
    compiled  Inductor on the plain net: neighbours are fused, the SE module stays as written
    analytic  the same with the fused SE tail: the end of a block (BN, SE, sum, ReLU) from the sums that BN needs anyway
    triton    the same with the fused SE tail in Triton kernels: 4 + 7 passes, with SE or without
    epilogue  BN's sums in the epilogue of one convolution, its scale in the prologue of the next (MLPerf's fastest)

Left out: weights, gradients and optimiser (some 30 bytes a parameter and step, little from 100 images a step on) and
caches.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from senet import config
from senet.execution.execution import Execution
from senet.models import build

Stack = Literal["eager", "compiled", "analytic", "triton", "epilogue"]
STACKS: tuple[Stack, ...] = get_args(Stack)
# Passes, forward and backward together, over what stands between convolutions, by stack. Convolutions and FC layers
# take three over input and output: forward, input gradient, weight gradient.
PASSES: dict[str, tuple[float, ...]] = {
    "norm": (8, 8, 8, 8, 3),  # 3 + 5
    "norm_to_sum": (8, 8, 8, 8, 5),  # a normalisation before a residual sum
    "activation": (5, 0, 0, 0, 0),  # 2 + 3, or fused
    "sum": (3, 3, 3, 3, 3),  # residual, before an activation: 1 + 2 with the ReLU
    "other_sum": (3, 0, 0, 0, 0),  # fused with what follows
    "join": (3, 3, 3, 3, 1),  # of the gradients of what is used twice
    "se": (11, 5, 1, 0, 0),  # of a normalisation, before a sum: 3 + 8; its squeeze for free
    "se_to_sum": (11, 5, 5, 5, 5),  # another before a sum
    "se_elsewhere": (11, 7, 7, 7, 7),
    "pool": (3, 3, 3, 3, 3),  # of input and output, and the places of the maxima
    "images": (2, 2, 2, 2, 2),  # fp32 in, half out
}
# Those whose inputs backward needs, besides those of convolutions.
KEPT = ("norm", "norm_to_sum", "se", "se_to_sum", "se_elsewhere")
TILE = 32  # channels in a group that fill a tensor core's tile; narrower groups are packed into it with zeros between
IMAGES = 2  # traced: BN refuses a single one if maps have shrunk to a pixel


@dataclass(frozen=True)
class Device:
    """What a device reaches: bytes/s in a copy of large tensors, FLOP/s in a large matrix product."""

    name: str
    bandwidth: float
    matmul: float
    source: str


@dataclass(frozen=True)
class Conv:
    """One convolution or FC layer: elements in and out and multiply-adds of its forward pass, for one image."""

    name: str
    inputs: int
    outputs: int
    macs: int
    waste: float = 1.0  # multiply-adds done for each one needed, by packing groups into tiles
    first: bool = False  # reads the images, which need no gradient

    @property
    def directions(self) -> int:
        """Forward, weight gradient and, but for the first, input gradient."""
        return 2 if self.first else 3


@dataclass(frozen=True)
class Traffic:
    """What one image moves. `passes` between the convolutions are (kind in PASSES, part of the net, elements)."""

    convs: tuple[Conv, ...]
    passes: tuple[tuple[str, str, int], ...]
    parameters: int  # trainable
    operations: int  # of the forward pass in eager mode, each a kernel or so

    @property
    def macs(self) -> int:
        """Multiply-adds of one forward pass."""
        return sum(conv.macs for conv in self.convs)

    def bytes(self, stack: Stack, itemsize: int = 2) -> float:
        """Return the bytes that one image moves through memory in a training step."""
        convs = sum(conv.directions * (conv.inputs + conv.outputs) for conv in self.convs)
        return itemsize * (convs + sum(_passes(kind, stack) * elements for kind, _, elements in self.passes))

    def seconds(self, stack: Stack, device: Device, itemsize: int = 2) -> float:
        """Return the roofline, seconds an image: all bytes; of a convolution its arithmetic if that is longer."""
        between = sum(_passes(kind, stack) * elements for kind, _, elements in self.passes)
        seconds = itemsize * between / device.bandwidth
        for conv in self.convs:
            memory = itemsize * (conv.inputs + conv.outputs) / device.bandwidth
            seconds += conv.directions * max(memory, 2 * conv.macs * conv.waste / device.matmul)
        return seconds

    def kept(self, itemsize: int = 2) -> float:
        """Return the bytes kept for backward: inputs of convolutions and normalisations, and what SE scales."""
        between = sum(elements for kind, _, elements in self.passes if kind in KEPT)
        return itemsize * (sum(conv.inputs for conv in self.convs) + between)


@functools.cache
def trace(net: config.Net, classes: int, crop: int) -> Traffic:
    """Count any network on the meta device: without memory, data or GPU. Raises UsageError as `build`."""
    with torch.device("meta"), torch.no_grad():
        module = build(net, classes).train()
        images = torch.empty(IMAGES, 3, crop, crop)
        with _Trace(module) as seen:
            module(images)
    parameters = sum(part.numel() for part in module.parameters() if part.requires_grad)
    between = itertools.chain.from_iterable(operation.passes() for operation in seen.operations)
    first = ("images", _part(seen.convs[0].name), 3 * crop * crop)
    return Traffic(tuple(seen.convs), (first, *between), parameters, seen.launched)


def itemsize(precision: str) -> int:
    """Return the bytes of one number of an activation."""
    return 4 if precision in ("fp32", "tf32") else 2


def stack_of(how: Execution) -> Stack | None:
    """Return the stack that an execution is; None for a CUDA graph, or a fused SE tail without compilation."""
    if how.graph:
        return None
    if not how.compile:
        return "eager" if how.tail == "plain" else None
    return "compiled" if how.tail == "plain" else how.tail


@dataclass(eq=False)
class _Operation:
    """An operation on an activation, with those that read its result."""

    kind: str  # conv, norm, activation, sum, se or pool
    part: str
    inputs: int
    output: int
    sources: list[_Operation]
    users: list[_Operation] = field(default_factory=list)

    def passes(self) -> Iterator[tuple[str, str, int]]:
        """Yield its passes as in Traffic, with the join of its result's gradients."""
        before, after = self.sources[0].kind if self.sources else None, {user.kind for user in self.users}
        kind, elements = self.kind, self.output
        if kind == "norm":
            onward = after | {last.kind for user in self.users if user.kind == "se" for last in user.users}
            kind = "norm_to_sum" if "sum" in onward else "norm"
        elif kind == "se":
            kind = "se_elsewhere" if after != {"sum"} else "se" if before == "norm" else "se_to_sum"
        elif kind == "sum" and "activation" not in after:
            kind = "other_sum"
        elif kind == "pool":
            elements += self.inputs
        if kind != "conv":
            yield kind, self.part, elements
        if len(self.users) > 1:
            yield "join", self.users[0].part, (len(self.users) - 1) * self.output


class _Trace(TorchDispatchMode):
    """Writes down the operations of a forward pass and the modules they are in."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.convs: list[Conv] = []
        self.operations: list[_Operation] = []
        self.launched = 0
        self._inside = [""]
        # By id, which is a tensor's own while that is held here.
        self._makers: dict[int, tuple[Tensor, _Operation]] = {}
        for name, layer in net.named_modules():
            layer.register_forward_pre_hook(functools.partial(self._enter, name))
            layer.register_forward_hook(self._leave)

    def _enter(self, name: str, layer: nn.Module, inputs: Any) -> None:
        self._inside.append(name)

    def _leave(self, layer: nn.Module, inputs: Any, output: Any) -> None:
        self._inside.pop()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        output = result[0] if isinstance(result, tuple | list) else result
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        if isinstance(output, Tensor) and tensors:
            self._note(func.overloadpacket.__name__.rstrip("_"), args, tensors, output)
        return result

    def _note(self, name: str, args: tuple[Any, ...], tensors: list[Tensor], output: Tensor) -> None:
        self.launched += VIEW.fullmatch(name) is None
        sources = [self._makers[id(tensor)][1] for tensor in tensors if id(tensor) in self._makers]
        kind = _kind(name, tensors[0].shape)
        if kind is not None:
            if kind == "conv":
                self._multiply(name, args, output)
            inputs, result = tensors[0].numel() // IMAGES, output.numel() // IMAGES
            operation = _Operation(kind, _part(self._inside[-1]), inputs, result, sources)
            for source in sources:
                source.users.append(operation)
            self.operations.append(operation)
            self._makers[id(output)] = output, operation
        elif sources and output.numel() // IMAGES == sources[0].output:
            # A view, a cast, a function of a vector: as if it were not there.
            self._makers[id(output)] = output, sources[0]

    def _multiply(self, name: str, args: tuple[Any, ...], output: Tensor) -> None:
        taken, weight = (args[0], args[1]) if name == "convolution" else args[-2:]
        given, waste = output.numel() // IMAGES, 1.0
        macs = given * (weight[0].numel() if name == "convolution" else weight.shape[0])
        if name == "convolution" and args[8] > 1:
            waste = max(1.0, TILE / weight.shape[1])
        self.convs.append(Conv(self._inside[-1], taken.numel() // IMAGES, given, macs, waste, not self.convs))


VIEW = re.compile("detach|view|t|transpose|permute|alias|expand|unsqueeze|squeeze|slice|select|empty|as_strided")
KINDS = {
    "conv": re.compile("convolution|addmm|mm"),
    "norm": re.compile("native_batch_norm|_native_batch_norm_legit|native_layer_norm|native_group_norm"),
    "activation": re.compile("relu|silu|gelu|sigmoid|tanh|hard(swish|sigmoid|tanh)|leaky_relu|threshold|clamp"),
    "sum": re.compile("add|sub"),
    "se": re.compile("mul"),
    "pool": re.compile("(max|avg)_pool.*"),
}


def _kind(name: str, shape: torch.Size) -> str | None:
    """Return the kind of an operation by its name; None for a view, and for too small a first tensor."""
    kind = next((kind for kind, names in KINDS.items() if names.fullmatch(name)), None)
    return kind if kind == "conv" or (len(shape) > 2 and shape[2:].numel() > 1) else None


def _part(name: str) -> str:
    words = name.split(".")
    return words[1] if words[0] == "stages" and len(words) > 1 else words[0]


def _passes(kind: str, stack: Stack) -> float:
    return PASSES[kind][STACKS.index(stack)]
