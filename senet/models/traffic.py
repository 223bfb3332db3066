"""What one training step must move and multiply, an image at a time, and how fast a device could do that at best.

A residual net is bound by memory: every activation is read and written many times around the convolutions. A pass is one read or one
write of a whole activation tensor. Convolutions take six (input and output, each in forward, input gradient and weight gradient); what
stands between them depends on how the net is computed:

    eager     each operation by itself: BN 3 + 5 passes, ReLU 2 + 3, sum 3, SE 3 + 8, join of gradients 3
    compiled  neighbours fused by Inductor, the SE module as written: BN with ReLU 3 + 5, a block's tail 4 + 7 (with SE 6.75 + 9.25)
    analytic  as compiled, SE from the sums that BN needs anyway: a block's tail 4 + 8
    ideal     as analytic, the ReLU's mask read from the output: a block's tail 4 + 7, with SE or without
    epilogue  BN's sums in the epilogue of one convolution, its scale in the prologue of the next, as MLPerf's fastest ResNet-50 has it

Left out: weights, gradients and optimiser (some 30 bytes a parameter and step, little from 100 images a step on) and caches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from senet import config
from senet.models import build
from senet.models.resnet import Block, PreactivationBlock
from senet.models.se import SEBlock

VARIANTS = ("eager", "compiled", "analytic", "ideal", "epilogue")
TILE = 32  # channels in a group that fill a tensor core's tile; narrower groups are packed into it with zeros between

# Passes, forward and backward together, over the tensor that stands beside the name, in the order of VARIANTS.
PASSES = {
    "inner": (13.0, 8.0, 8.0, 8.0, 3.0),  # BN and ReLU between two convolutions
    "shortcut": (8.0, 8.0, 8.0, 8.0, 5.0),  # BN of a projection
    "tail": (16.0, 11.0, 11.0, 11.0, 8.0),  # last BN, sum, ReLU
    "se": (11.0, 5.0, 1.0, 0.0, 0.0),  # what SE adds to a tail
    "se_elsewhere": (11.0, 7.0, 7.0, 7.0, 7.0),  # SE where no tail takes it in: before the branch, after the sum
    "sum": (3.0, 0.0, 0.0, 0.0, 0.0),  # of a pre-activation block: fused, the next BN reads it and writes it
    "join": (3.0, 3.0, 3.0, 3.0, 1.0),  # of the gradients that meet at a block's input
}


@dataclass(frozen=True)
class Device:
    """What a GPU reaches: bytes/s in a copy of large tensors, FLOP/s in a large half-precision matrix product."""

    name: str
    bandwidth: float
    matmul: float
    source: str


# Reached, not promised: data sheets give 10 to 25 % more. Ours is measured where a GPU is at hand (senet.bench.probe).
DEVICES = {
    "h200": Device("H200", 4.3e12, 790e12, "measured; data sheet 4.8 TB/s, 989 TFLOP/s"),
    "h100": Device("H100 SXM", 3.0e12, 700e12, "0.9 and 0.7 of the data sheet (3.35 TB/s, 989 TFLOP/s), assumed"),
    "a100": Device("A100 80 GB", 1.75e12, 250e12, "0.86 and 0.8 of the data sheet (2.04 TB/s, 312 TFLOP/s), assumed"),
    "3090": Device("RTX 3090", 0.84e12, 70e12, "0.9 and 1.0 of the data sheet (0.936 TB/s, 71 TFLOP/s), assumed"),
}


@dataclass(frozen=True)
class Conv:
    """One convolution or FC layer: elements in and out and multiply-adds of its forward pass, for one image."""

    name: str
    inputs: int
    outputs: int
    macs: int
    waste: float = 1.0  # multiply-adds done for each one needed, by packing groups into tiles
    first: bool = False  # reads the images, which need no gradient
    grouped: bool = False

    @property
    def directions(self) -> int:
        """Forward, weight gradient and, but for the first, input gradient."""
        return 2 if self.first else 3


@dataclass(frozen=True)
class Traffic:
    """Of one image. `passes`: what stands between the convolutions, as (kind in PASSES, part of the net, elements)."""

    convs: tuple[Conv, ...]
    passes: tuple[tuple[str, str, int], ...]
    extra: int  # elements moved the same way in every variant: pooling, the input
    parameters: int

    @property
    def macs(self) -> int:
        """Multiply-adds of one forward pass."""
        return sum(conv.macs for conv in self.convs)

    @property
    def flop(self) -> float:
        """Floating-point operations of one training step: two for each multiply-add, in each direction."""
        return float(sum(2 * conv.directions * conv.macs for conv in self.convs))

    def parts(self, variant: str) -> dict[str, tuple[float, float]]:
        """Part of the net (stem, stage2, ..., fc) -> (elements moved between convolutions and by them, multiply-adds forward)."""
        found: dict[str, tuple[float, float]] = {}

        def add(part: str, elements: float, macs: float) -> None:
            before = found.get(part, (0.0, 0.0))
            found[part] = (before[0] + elements, before[1] + macs)

        for conv in self.convs:
            add(_part(conv.name), conv.directions * (conv.inputs + conv.outputs), conv.macs)
        for kind, part, elements in self.passes:
            add(part, _passes(kind, variant) * elements, 0)
        add("stem", self.extra, 0)
        return found

    def bytes(self, variant: str, itemsize: int = 2) -> float:
        """Bytes one image moves through memory in a training step; `itemsize` 2 for bf16 and fp16, 4 for fp32."""
        return itemsize * sum(elements for elements, _ in self.parts(variant).values())

    def seconds(self, variant: str, device: Device, itemsize: int = 2) -> float:
        """The roofline: each convolution takes as long as its bytes or its arithmetic, whichever is longer, the rest its bytes."""
        moved = self.extra + sum(_passes(kind, variant) * elements for kind, _, elements in self.passes)
        seconds = itemsize * moved / device.bandwidth
        for conv in self.convs:
            memory = itemsize * (conv.inputs + conv.outputs) / device.bandwidth
            seconds += conv.directions * max(memory, 2 * conv.macs * conv.waste / device.matmul)
        return seconds

    def images_per_second(self, variant: str, device: Device, itemsize: int = 2) -> float:
        return 1 / self.seconds(variant, device, itemsize)


def traffic(net: config.Net, classes: int, crop: int) -> Traffic:
    """Count a residual network on the meta device: no memory, data or GPU. Raises ValueError for a net of timm: its parts are its own."""
    if net.timm is not None:
        raise ValueError(f"no traffic model of timm's {net.timm}")
    with torch.device("meta"):
        module = build(net, classes)
        count = _Count(module)
        module(torch.empty(2, 3, crop, crop))
    pool = 3 * count.pooled  # its input and output in both directions, and where each maximum was
    images = 2 * 3 * crop * crop  # read as fp32, written in the precision of the net: half of that again where it is fp32
    parameters = sum(p.numel() for p in module.parameters())
    return Traffic(tuple(count.convs), tuple(count.passes), pool + images, parameters)


class _Count:
    """Forward hooks that note every layer's sizes."""

    def __init__(self, net: nn.Module) -> None:
        self.convs: list[Conv] = []
        self.passes: list[tuple[str, str, int]] = []
        self.pooled = 0
        tails = {id(last) for block in net.modules() if isinstance(block, Block) for last in [_tail(block)] if last is not None}
        for name, layer in net.named_modules():
            layer.register_forward_hook(self._hook(name, id(layer) in tails))

    def _hook(self, name: str, tail: bool) -> Any:
        part = _part(name)

        def note(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            taken, given = inputs[0][0].numel(), output[0].numel()
            if isinstance(layer, nn.Conv2d):
                narrow = layer.in_channels // layer.groups
                waste = max(1.0, TILE / narrow) if layer.groups > 1 else 1.0
                macs = given * layer.weight[0].numel()
                self.convs.append(Conv(name, taken, given, macs, waste, not self.convs, layer.groups > 1))
            elif isinstance(layer, nn.Linear):
                self.convs.append(Conv(name, taken, given, layer.in_features * layer.out_features))
            elif isinstance(layer, nn.BatchNorm2d):
                self.passes.append(("tail" if tail else "shortcut" if ".shortcut." in name else "inner", part, given))
            elif isinstance(layer, SEBlock):
                self.passes.append(("se" if name.endswith(".se") and ".branch." not in name else "se_elsewhere", part, given))
            elif isinstance(layer, nn.MaxPool2d):
                self.pooled += taken + given
            elif isinstance(layer, Block):
                self.passes.append(("join", part, taken))
                if isinstance(layer, PreactivationBlock):
                    self.passes.append(("sum", part, given))

        return note


def _tail(block: Block) -> nn.Module | None:
    """The BN that ends the branch; a pre-activation block has none."""
    if isinstance(block, PreactivationBlock):
        return None
    return [layer for layer in block.branch if isinstance(layer, nn.BatchNorm2d)][-1]


def _part(name: str) -> str:
    words = name.split(".")
    return words[1] if words[0] == "stages" and len(words) > 1 else words[0]


def _passes(kind: str, variant: str) -> float:
    return PASSES[kind][VARIANTS.index(variant)]
