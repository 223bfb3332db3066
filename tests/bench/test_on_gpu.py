"""What only a GPU can show; `launch.bench gpu` runs it too. No execution waits for the device, and fused SE tails are
no worse than the layers in any precision. Tails are compared on a CPU as well, in small.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, Literal, get_args

import pytest
import torch
from torch import Tensor, nn

from senet.bench.contestants import execution, ours, synthetic
from senet.config import SE, Bottleneck, Config
from senet.distributed import World
from senet.execution.execution import Execution, Layout, prepare
from senet.models.resnet import Block, Branch
from senet.train.trainer import DTYPES, set_tf32

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
# So near zero, rounding decides whether the last ReLU passes a gradient: none is given there.
DOUBT = {"fp32": 1e-3, "bf16": 0.05, "fp16": 0.01}


class Given(nn.Module):
    """Stands for the layers before the tail: gives a tensor whatever comes in."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return self.value


class Case:
    """The end of one block on one input, whose mean is `shift` standard deviations from zero."""

    def __init__(self, device: str, shape: tuple[int, int, int], se: bool, shift: float, precision: str) -> None:
        images, channels, side = shape
        net = Bottleneck(blocks=(1,), widths=(channels // 4,), expansion=4, se=SE() if se else None)
        self.dtype = DTYPES[precision]
        torch.manual_seed(0)
        self.block = Block(net, channels, channels // 4, 1, net.se).to(device)
        bn: Any = self.block.branch.bn3
        self.block.branch = Branch()
        self.block.branch.add(given=nn.Identity(), bn3=bn)
        nn.init.normal_(bn.weight, 1.0, 0.2)
        nn.init.normal_(bn.bias, 0.0, 0.2)
        draw = (images, channels, side, side)
        # In the precision that is tried, so that all start from the same numbers.
        self.inner = (torch.randn(draw, device=device) + shift).to(self.dtype)
        self.shortcut, self.grad = (torch.randn(draw, device=device).to(self.dtype) for _ in range(2))
        with torch.no_grad():
            exact = copy.deepcopy(self.block).double()
            before = exact.se(copy.deepcopy(bn).double()(self.inner.double())) + self.shortcut.double()
            self.grad[before.abs() < DOUBT[precision]] = 0
        self.truth = dict(self.results(Execution(), torch.float64))

    def errors(self, how: Execution) -> dict[str, float]:
        """Norm of the difference to float64 as a share of what is right: output, input, shortcut, worst parameter."""
        found = dict(self.results(how, self.dtype))
        errors = {name: float((found[name] - right).norm() / right.norm()) for name, right in self.truth.items()}
        named = {name: errors.pop(name) for name in ("out", "input", "shortcut")}
        return named | {"parameters": max(errors.values())}

    def results(self, how: Execution, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """Output and gradients, as float64."""
        low = dtype in (torch.bfloat16, torch.float16)
        block = copy.deepcopy(self.block).to(torch.float32 if low else dtype).train()
        inner, shortcut = (
            part.to(dtype).clone(memory_format=how.memory_format).requires_grad_()
            for part in (self.inner, self.shortcut)
        )
        block.branch.given = Given(inner)
        prepare(block, how)
        with torch.autocast(inner.device.type, self.dtype, enabled=low):
            out = block(shortcut)
        out.backward(self.grad.to(out.dtype).contiguous(memory_format=how.memory_format))
        found = {"out": out.detach(), "input": inner.grad, "shortcut": shortcut.grad}
        found |= {name: parameter.grad for name, parameter in block.named_parameters()}
        yield from ((name, value.double()) for name, value in found.items() if value is not None)


Fused = Literal["analytic", "triton"]


def check(case: Case, tails: tuple[Fused, ...]) -> None:
    """At most twice as wrong as the layers in the same precision, or wrong by a few roundings."""
    few = 4 * torch.finfo(case.dtype).eps
    for layout in get_args(Layout):
        plain = case.errors(Execution(layout))
        for tail in tails:
            for name, error in case.errors(Execution(layout, tail)).items():
                assert error <= max(2 * plain[name], few), (layout, tail, name, error, plain[name])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("shift", [0.0, 100.0])
@pytest.mark.parametrize("se", [True, False])
def test_the_fused_tail_is_no_worse_than_the_layers(se: bool, shift: float, precision: str) -> None:
    check(Case("cpu", (4, 64, 8), se, shift, precision), ("analytic",))


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("precision", DOUBT)
@pytest.mark.parametrize("shift", [0.0, 100.0])
@pytest.mark.parametrize("se", [True, False])
@pytest.mark.parametrize("shape", [(32, 256, 56), (32, 512, 28), (32, 2048, 7), (5, 72, 13)])
def test_fused_tails_are_no_worse_than_the_layers_on_a_gpu(
    shape: tuple[int, int, int], se: bool, shift: float, precision: str
) -> None:
    set_tf32(Config())
    check(Case("cuda", shape, se, shift, precision), ("analytic", "triton"))


@pytest.mark.gpu
@on_gpu
@pytest.mark.filterwarnings("ignore")  # of the compiler's own
@pytest.mark.parametrize("precision", DOUBT)
@pytest.mark.parametrize(
    "how", ["channels_last", "channels_last+triton", "channels_last+graph", "channels_last+analytic+compile"]
)
def test_no_execution_waits_for_the_device_in_a_step(how: str, precision: str) -> None:
    settings = synthetic("configs/cifar10/se_resnet20.yaml", f"precision={precision}", batch=64)
    step = ours(settings, World(0, 1, torch.device("cuda", 0)), execution(how))
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(10):
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
