"""How a net is computed: memory layout, the residual tail, compilation, CUDA graphs.

Last bits of a result depend on it, and speed and memory; nothing else. State-dict names stay, so a checkpoint fits
every execution.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn

from senet.errors import UsageError
from senet.execution import tail
from senet.models.network import Network, TailBlock

Layout = Literal["channels_last", "contiguous"]
Tail = Literal["plain", "analytic", "triton"]


@dataclass(frozen=True)
class Execution:
    """Kept in the run folder and in checkpoints, so that a resumed run computes as it did before."""

    layout: Layout = "channels_last"
    # how a block ends (BN, SE, sum, ReLU): layer by layer, in as few passes as can be, or those as Triton kernels
    tail: Tail = "plain"
    compile: bool = False  # block by block, so that DDP still reduces the gradients of one while the next is computed
    graph: bool = False  # a whole training step as one CUDA graph; done by the loop

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.layout == "channels_last" else torch.contiguous_format

    def __str__(self) -> str:
        """What is on, in few words: `channels_last analytic compile`."""
        words = [self.layout, self.tail] if self.tail != "plain" else [self.layout]
        return " ".join(words + ["compile"] * self.compile + ["graph"] * self.graph)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON or a checkpoint."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Execution:
        """The inverse of `to_dict`. Raises UsageError for an unknown key or value."""
        known: dict[str, tuple[Any, ...]] = {
            "layout": get_args(Layout), "tail": get_args(Tail), "compile": (False, True), "graph": (False, True)
        }  # fmt: skip
        for key, value in values.items():
            if key not in known:
                raise UsageError(f"execution.{key}: no such setting; there are {', '.join(known)}")
            if value not in known[key] or type(value) is not type(known[key][0]):
                raise UsageError(f"execution.{key}: {value!r} is none of {', '.join(map(str, known[key]))}")
        return cls(**values)


def prepare(net: nn.Module, execution: Execution) -> nn.Module:
    """Make `net`, which is on its device already, compute so, in place; its state dict stays, its results up to
    rounding.

    What an earlier call set is undone, so that one net can be timed in several executions. Hooks on the layers of a
    tail that is not plain are not called: look into a net in the plain execution. Raises UsageError naming a setting
    that this net or machine cannot follow, or that would have no effect.
    """
    device = next(net.parameters()).device
    _check(net, execution, device)
    net.to(memory_format=execution.memory_format)
    for block in net.modules():
        if isinstance(block, TailBlock):
            block.tail = tail.of(block, execution.tail)
    for module in net.modules():
        module._compiled_call_impl = None
    if execution.compile:
        _compile(net)
    return net


def choices(net: nn.Module, device: torch.device) -> list[Execution]:
    """The executions of `net` worth timing on `device`, the default first.

    The analytic tail is for a compiler to fuse: uncompiled it is slower than the layers. CUDA graphs are for small
    nets: the kernels of large ones outlast the launching of the next.
    """
    able = _compiler(device) is None
    graphs = [False, True] if device.type == "cuda" and isinstance(net, Network) and net.small else [False]
    found = []
    for layout in get_args(Layout):
        for compiled in [False, True] if able else [False]:
            tails: list[Tail] = ["plain"]
            if _fused(net):
                tails += ["analytic"] if compiled else []
                tails += ["triton"] if able and device.type == "cuda" else []
            found += [Execution(layout, kind, compiled, graph) for kind in tails for graph in graphs]
    return found


def _check(net: nn.Module, execution: Execution, device: torch.device) -> None:
    if execution.tail != "plain" and not _fused(net):
        raise UsageError(
            f"execution.tail: {execution.tail!r} would have no effect: no block of this net ends with BN, SE, sum and "
            "ReLU; use plain"
        )
    if execution.tail == "triton":
        if not _triton():
            raise UsageError(
                "execution.tail: 'triton' needs the package triton, which comes with torch for "
                "CUDA; use analytic or plain"
            )
        if device.type != "cuda" and not os.environ.get("TRITON_INTERPRET"):
            raise UsageError(
                f"execution.tail: 'triton' needs a GPU, the net is on {device.type}; use analytic or plain"
            )
    if (execution.compile or execution.tail == "triton") and (reason := _compiler(device)):
        raise UsageError(f"execution.{'compile' if execution.compile else 'tail'}: {reason}; or leave it out")
    if execution.graph and device.type != "cuda":
        raise UsageError(
            "execution.graph: true would have no effect: CUDA graphs need a GPU, the net is on "
            f"{device.type}; leave it out"
        )


def _fused(net: nn.Module) -> bool:
    return any(block.fusable for block in net.modules() if isinstance(block, TailBlock))


def _triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _compiler(device: torch.device) -> str | None:
    """Why nothing can be compiled for `device`; None where it can. On a GPU Triton builds its launchers with a C
    compiler.
    """
    if device.type == "cuda" and not _triton():
        return "needs the package triton, which comes with torch for CUDA; install it"
    wanted = ("CXX", "g++", "clang++") if device.type == "cpu" else ("CC", "gcc", "clang", "cc")
    if any(shutil.which(name) for name in (os.environ.get(wanted[0], ""), *wanted[1:]) if name):
        return None
    return f"needs a compiler, and there is none of {', '.join(wanted[1:])}; install one or name it in ${wanted[0]}"


def _compile(net: nn.Module) -> None:
    import torch._dynamo

    torch._dynamo.reset()  # what was compiled for other executions counts against the limits below
    parts = list(net.parts()) if isinstance(net, Network) else [net]
    # Parts of one shape share their code, but all parts share one table of codes: per shape, training or evaluation,
    # size of the batch and of growing images. Beyond its usual limit of 8 the rest would run uncompiled.
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, 256)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, 1024)
    # DDP's cutting of compiled graphs is for whole nets: parts end where gradients can go anyway.
    limits.optimize_ddp = parts == [net]
    for part in parts:
        part.compile(dynamic=False)
