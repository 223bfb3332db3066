"""What a process on null GPUs needs besides the libraries; Python imports this by itself, from PYTHONPATH.

cuDNN is not there, so convolutions are given its shapes, strides and copies here. What is computed is garbage, so what
a run reads from the device to decide by (were the gradients finite, how many images were counted) says that all is
well.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def convolutions(torch: Any) -> None:
    """Shapes and strides as cuDNN's: channels_last if the images or the weights are so, and all is copied to that.

    NULLGPU_OUT_OF_MEMORY=RANK:N lets the N-th convolution of a rank fail.
    """
    last, contiguous = torch.channels_last, torch.contiguous_format
    left: list[int] = []

    def layout(images: Any, weight: Any) -> Any:
        if images.dim() != 4 or images.dtype == torch.double:
            return contiguous
        suggested = [torch._prims_common.suggest_memory_format(part) for part in (images, weight)]
        return last if last in suggested else contiguous

    def forward(images: Any, weight: Any, bias: Any, *rest: Any) -> Any:
        if not left:  # only now: the process may have been forked with an environment of its own
            rank, _, number = os.environ.get("NULLGPU_OUT_OF_MEMORY", "").partition(":")
            left.append(int(number) if number and os.environ.get("RANK", "0") == rank else 0)
        left[0] -= 1
        if left[0] == 0:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB (made up)")
        kept = layout(images, weight)
        images, weight = (part.contiguous(memory_format=kept) for part in (images, weight))
        shape = torch.ops.aten.convolution(images.to("meta"), weight.to("meta"), None, *rest).shape
        return torch.empty(shape, dtype=images.dtype, device=images.device, memory_format=kept)

    def backward(grad: Any, images: Any, weight: Any, bias: Any, *rest: Any) -> Any:
        kept = layout(images, weight)
        grad, images, weight = (part.contiguous(memory_format=kept) for part in (grad, images, weight))
        wanted = rest[-1]
        return (
            torch.empty_like(images, memory_format=kept) if wanted[0] else None,
            torch.empty_like(weight, memory_format=kept) if wanted[1] else None,
            torch.empty(bias, dtype=grad.dtype, device=grad.device) if wanted[2] else None,
        )

    import warnings

    global library  # what it registers ends with it
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is an implementation already
        library.impl("convolution", forward, "CUDA")
        library.impl("convolution_backward", backward, "CUDA")


def meter(module: Any) -> None:
    def read(self: Any, total: Any = None) -> dict[str, float]:
        (self.sums if total is None else total).tolist()  # waits, as the real one does
        return {"loss": 1.0, "top1_error": 50.0, "top5_error": 10.0, "images": 1}

    module.Meter.read = read


def guard(module: Any) -> None:
    import torch

    def nonfinite_steps(self: Any) -> list[int]:
        if self._recorded:
            torch.stack([finite for _, finite in self._recorded]).tolist()
        self._recorded.clear()
        return []

    module.NonFiniteGuard.nonfinite_steps = nonfinite_steps


class After(Loader):
    """Imports a module as ever, then calls `act` on it."""

    def __init__(self, loader: Any, act: Callable[[Any], None]) -> None:
        self.loader, self.act = loader, act

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        self.act(module)


class Finder(MetaPathFinder):
    acts: dict[str, Callable[[Any], None]] = {  # noqa: RUF012
        "torch": convolutions,
        "senet.train.meter": meter,
        "senet.train.nonfinite": guard,
    }

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        act = self.acts.pop(name, None)
        if act is None:
            return None
        spec = importlib.util.find_spec(name)
        assert spec is not None
        spec.loader = After(spec.loader, act)
        return spec


if os.environ.get("NULLGPU_LIBRARY"):
    sys.meta_path.insert(0, Finder())
