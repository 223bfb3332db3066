"""How a net is computed: the layout of its tensors, the fused SE tail, compilation, CUDA graphs.

Speed, memory and the last bits of a result depend on it, nothing else. Names in the state dict stay, so a checkpoint
fits every execution. The *fused SE tail* is the end of a residual block (BN, SE, sum with the shortcut, ReLU) computed
as one function in a few passes over memory, see `senet.execution.tail`: by PyTorch's operators (`analytic`, for a
compiler to fuse) or by Triton kernels (`triton`).
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

import torch
from torch import nn

from senet.errors import UsageError
from senet.execution import tail
from senet.models.network import Staged, TailBlock

Layout = Literal["channels_last", "contiguous"]
Tail = Literal["plain", "analytic", "triton"]


@dataclass(frozen=True)
class Execution:
    """The way to compute a net. A run folder and checkpoints hold it, so that a resumed run computes as before."""

    layout: Layout = "channels_last"
    tail: Tail = "plain"  # of residual blocks: layer by layer, or fused
    compile: bool = False  # block by block, so that DDP still reduces the gradients of one while the next is computed
    graph: bool = False  # a whole training step as one CUDA graph; the training loop does that

    @property
    def memory_format(self) -> torch.memory_format:
        """The layout as torch names it: of the weights, and of the images that a loader is to give."""
        return torch.channels_last if self.layout == "channels_last" else torch.contiguous_format

    def __str__(self) -> str:
        """Name what is on: `channels_last analytic compile`."""
        words = [self.layout, self.tail] if self.tail != "plain" else [self.layout]
        return " ".join(words + ["compile"] * self.compile + ["graph"] * self.graph)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON or a checkpoint."""
        return dict(vars(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Execution:
        """Return what `to_dict` was called on. Raises UsageError for an unknown key or value."""
        known = {name: get_args(kind) or (False, True) for name, kind in get_type_hints(cls).items()}
        for key, value in values.items():
            if key not in known:
                raise UsageError(f"execution.{key}: no such setting; there are {', '.join(known)}")
            if value not in known[key] or type(value) is not type(known[key][0]):
                raise UsageError(f"execution.{key}: {value!r} is none of {', '.join(map(str, known[key]))}")
        return cls(**values)


def prepare(net: nn.Module, execution: Execution) -> nn.Module:
    """Make `net`, which is on its device already, compute as `execution` says, in place, and return it.

    Results stay the same up to rounding. What an earlier call has set is undone, so that one net can be timed in
    several executions. The fused SE tail does not call hooks on the layers that it replaces: look into a net in the
    plain execution. Raises UsageError for a setting that this net or machine cannot follow, or that would do nothing.
    """
    device = next(net.parameters()).device
    _check(net, execution, device)
    net.to(memory_format=execution.memory_format)
    for module in net.modules():
        module._compiled_call_impl = None
        if isinstance(module, TailBlock):
            module.tail = tail.of(module, execution.tail)
    if execution.compile:
        _compile(net)
    return net


def choices(net: nn.Module, device: torch.device) -> list[Execution]:
    """Return the executions of `net` that are worth timing on `device`, the default first.

    Without a compiler the analytic tail is slower than the layers. CUDA graphs are for small nets: the kernels of large
    ones outlast the launching of the next.
    """
    compiles = _no_compiler(device) is None
    graphs = [False, True] if device.type == "cuda" and isinstance(net, Staged) and net.small else [False]
    found = []
    for layout in get_args(Layout):
        for compiled in [False, True] if compiles else [False]:
            tails: list[Tail] = ["plain"]
            if _fusable(net):
                tails += ["analytic"] if compiled else []
                tails += ["triton"] if compiles and device.type == "cuda" else []
            found += [Execution(layout, kind, compiled, graph) for kind in tails for graph in graphs]
    return found


def _check(net: nn.Module, execution: Execution, device: torch.device) -> None:
    flag = f"--tail {execution.tail}"
    if execution.tail != "plain" and any(isinstance(module, nn.SyncBatchNorm) for module in net.modules()):
        raise UsageError(f"{flag} takes statistics of a rank's own images, and bn.sync is set; leave one of them out")
    if execution.tail != "plain" and not _fusable(net):
        none = "no block of this net ends with BN, SE, sum and ReLU"
        raise UsageError(f"{flag} would have no effect: {none}; leave it out")
    if execution.tail == "triton":
        if not _has_triton():
            raise UsageError(f"{flag} needs the package triton, which comes with torch for CUDA; use --tail analytic")
        if device.type != "cuda" and not os.environ.get("TRITON_INTERPRET"):
            raise UsageError(f"{flag} needs a GPU, and the net is on the {device.type}; use --tail analytic")
    if (execution.compile or execution.tail == "triton") and (reason := _no_compiler(device)):
        raise UsageError(f"{'--compile' if execution.compile else flag} {reason}; or leave it out")
    if execution.graph and device.type != "cuda":
        raise UsageError(f"--graph would have no effect: CUDA graphs need a GPU, and the net is on the {device.type}")


def _fusable(net: nn.Module) -> bool:
    return any(block.fusable for block in net.modules() if isinstance(block, TailBlock))


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _no_compiler(device: torch.device) -> str | None:
    """Say why nothing can be compiled for `device`; None if it can. Triton builds launchers with a C compiler."""
    if device.type == "cuda" and not _has_triton():
        return "needs the package triton, which comes with torch for CUDA; install it"
    variable, *names = ("CXX", "g++", "clang++") if device.type == "cpu" else ("CC", "gcc", "clang", "cc")
    if any(shutil.which(name) for name in (os.environ.get(variable), *names) if name):
        return None
    return f"needs a compiler, and there is none of {', '.join(names)}; install one or name it in ${variable}"


def _compile(net: nn.Module) -> None:
    import torch._dynamo
    import torch._inductor.config

    torch._dynamo.reset()  # what was compiled for other executions counts against the limits below
    parts = net.parts() if isinstance(net, Staged) else [net]
    # Parts of one shape share their code, but all parts share one table of codes: per shape, training or evaluation,
    # size of the batch and of growing images. Beyond its usual limit of 8 the rest would run uncompiled.
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, 256)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, 1024)
    # What a net draws (the mixing of Shake-Shake) is what it draws uncompiled.
    torch._inductor.config.fallback_random = True
    # DDP's cutting of compiled graphs is for whole nets: parts end where gradients can go anyway.
    limits.optimize_ddp = parts == [net]
    for part in parts:
        part.compile(dynamic=False)
