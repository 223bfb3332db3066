"""A part of the GPU bench: how wrong the fused tails are, against the plain block in float64 and beside the plain block
as precise.
"""

from __future__ import annotations

import copy
import itertools
import time
from dataclasses import replace
from typing import Any, get_args

import torch
from torch import Tensor, nn

from senet.bench.parts import Place
from senet.config import SE, Bottleneck
from senet.execution.execution import Execution, Layout, prepare
from senet.models.resnet import Block, Branch
from senet.system.timing import reason
from senet.train.trainer import DTYPES

DOUBT = {
    "fp32": 1e-3,
    "bf16": 0.05,
    "fp16": 0.01,
}  # so near zero, rounding decides whether ReLU passes a gradient: none is given there


def numerics(place: Place) -> dict[str, Any]:
    """Errors of output and gradients for shapes, precisions, layouts, with SE and without, and with a mean far from
    zero.

    An error is a norm: of the difference, as a share of what is right. A tail passes where it is at most twice as wrong
    as the plain block, or wrong by a few roundings.
    """
    gpu = place.device.type == "cuda"
    torch.backends.cudnn.allow_tf32 = False
    shapes = [(4, 64, 8)] if place.tiny else [(32, 256, 56), (32, 512, 28), (32, 2048, 7), (5, 72, 13)]
    precisions = ("fp32", "bf16", "fp16") if gpu else ("fp32", "bf16")
    tails = ("analytic", "triton") if gpu else ("analytic",)
    rows: list[dict[str, Any]] = []
    complete = True
    for shape, se, shift, precision in itertools.product(shapes, (True, False), (0.0, 100.0), precisions):
        if time.monotonic() > place.deadline:
            complete = False
            break
        case = _Case(place, shape, se, shift, precision)
        rows += [case.row(tail, layout) for layout in get_args(Layout) for tail in tails]
    return {"rows": rows, "complete": complete, "passed": all(row["passed"] for row in rows)}


class _Given(nn.Module):
    """Stands for the layers before the tail: gives a tensor whatever comes in."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return self.value


class _Case:
    """One block's end on one input, which is `shift` standard deviations from zero."""

    def __init__(self, place: Place, shape: tuple[int, int, int], se: bool, shift: float, precision: str) -> None:
        images, channels, side = shape
        net = Bottleneck(blocks=(1,), widths=(channels // 4,), expansion=4, se=SE() if se else None)
        self.facts = {"shape": list(shape), "se": se, "shift": shift, "precision": precision}
        self.precision, self.dtype = precision, DTYPES[precision]
        torch.manual_seed(0)
        self.block = Block(net, channels, channels // 4, 1, net.se).to(place.device)
        bn: Any = self.block.branch.bn3
        self.block.branch = Branch()
        self.block.branch.add(given=nn.Identity(), bn3=bn)
        with torch.no_grad():
            nn.init.normal_(bn.weight, 1.0, 0.2)
            nn.init.normal_(bn.bias, 0.0, 0.2)
        draw = (images, channels, side, side)
        # In the precision that is tried, so that all start from the same numbers.
        self.inner = (torch.randn(draw, device=place.device) + shift).to(self.dtype)
        self.shortcut, self.grad = (torch.randn(draw, device=place.device).to(self.dtype) for _ in range(2))
        with torch.no_grad():
            exact = copy.deepcopy(self.block).double()
            before = exact.se(copy.deepcopy(bn).double()(self.inner.double())) + self.shortcut.double()
            self.grad[before.abs() < DOUBT[precision]] = 0
        self.truth = self._results("plain", "channels_last", torch.float64)
        self.plain = {layout: self._errors("plain", layout) for layout in get_args(Layout)}

    def row(self, tail: str, layout: str) -> dict[str, Any]:
        row: dict[str, Any] = self.facts | {
            "tail": tail,
            "layout": layout,
            "plain": self.plain[layout],
            "failure": None,
        }
        try:
            error = self._errors(tail, layout)
        except Exception as failure:
            return row | {"error": None, "passed": False, "failure": reason(failure)}
        few = 4 * torch.finfo(self.dtype).eps
        return row | {
            "error": error,
            "passed": all(error[name] <= max(2 * self.plain[layout][name], few) for name in error),
        }

    def _errors(self, tail: str, layout: str) -> dict[str, float]:
        found = self._results(tail, layout, self.dtype)
        errors = {name: float((found[name] - right).norm() / right.norm()) for name, right in self.truth.items()}
        named = {name: errors.pop(name) for name in ("out", "input", "shortcut")}
        return named | {"parameters": max(errors.values())}

    def _results(self, tail: str, layout: str, dtype: torch.dtype) -> dict[str, Tensor]:
        """Output and gradients, as float64."""
        low = dtype in (torch.bfloat16, torch.float16)
        order = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        block = copy.deepcopy(self.block).to(torch.float32 if low else dtype).train()
        inner, shortcut = (
            part.to(dtype).clone(memory_format=order).requires_grad_() for part in (self.inner, self.shortcut)
        )
        block.branch.given = _Given(inner)
        prepare(block, replace(Execution(), layout=layout, tail=tail))  # type: ignore[arg-type]
        with torch.autocast(inner.device.type, self.dtype, enabled=low):
            out = block(shortcut)
        out.backward(self.grad.to(out.dtype).contiguous(memory_format=order))
        found = {"out": out.detach(), "input": inner.grad, "shortcut": shortcut.grad}
        found |= {name: parameter.grad for name, parameter in block.named_parameters()}
        return {name: value.double() for name, value in found.items() if value is not None}
