"""The fused SE tail: the end of a residual block (BN, SE, sum with the shortcut, ReLU) in few passes over memory.

A pass reads or writes a tensor of the size of the block's output once; a GPU spends the time of these layers on nothing
else. Layer by layer they take 11 passes forward and 16 backward, here 4 and 7 (8 as Inductor plans them on the CPU).
What makes it possible: the squeeze is the mean of BN's output, which is an affine map of BN's input, so it follows from
the mean of that input, which BN needs anyway. For each image and channel, with d the gradient that passes the ReLU and
M = N H W values in a channel:

    a = weight / sqrt(var + eps)     p = a (centre - mean) + bias     s = gate(up(relu(down(p))))
    out = relu(a s (x - centre) + s p + shortcut)
    sum1 = sum d     sum2 = sum d (x - centre)     ds = a sum2 + p sum1     dp from ds through the two FC layers
    dbias = sum of (s sum1 + dp)
    dweight = sum of (s (sum2 + (centre - mean) sum1) + dp (centre - mean)) / sqrt(var + eps)
    dx = a s d + tilt (x - centre) + tilt (centre - mean) + a (dp / (H W) - dbias / M)
    tilt = -a dweight / (M sqrt(var + eps))

`centre` is the image's own mean of the channel, and p the mean that the squeeze takes of BN's output. Without SE s is 1
and dp is 0. All sums are about a mean, so that a mean far from 0 costs no digits, and in float32 or better. The same
formulas serve PyTorch's operators (for Inductor to fuse) and Triton's kernels, which only make the passes.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from senet.models.network import Tail, TailBlock
from senet.models.se import GATES, SLOPES, SEBlock


def of(block: TailBlock, kind: Literal["plain", "analytic", "triton"]) -> Tail:
    """Return the tail of a block: the fused one of this kind if the block has such an end, otherwise its own."""
    return block.plain if kind == "plain" or not block.fusable else {"analytic": analytic, "triton": triton}[kind]


def analytic(inner: Tensor, shortcut: Tensor, norm: nn.Module, se: nn.Module) -> Tensor:
    """Compute relu(shortcut + se(norm(inner))) in PyTorch's operators, all [N, C, H, W]."""
    return _tail(inner, shortcut, norm, se, False)


def triton(inner: Tensor, shortcut: Tensor, norm: nn.Module, se: nn.Module) -> Tensor:
    """Compute relu(shortcut + se(norm(inner))) in Triton's kernels, all [N, C, H, W]."""
    return _tail(inner, shortcut, norm, se, True)


def _tail(x: Tensor, shortcut: Tensor, bn: nn.Module, block: nn.Module | None, kernels: bool) -> Tensor:
    assert isinstance(bn, nn.BatchNorm2d)
    se = block if isinstance(block, SEBlock) else None
    of_batch = bn.training or bn.running_mean is None or bn.running_var is None  # or the running statistics
    kernels = kernels and x.dtype != torch.float64
    mean, var = bn.running_mean, bn.running_var
    with torch.no_grad():
        if of_batch and x.numel() == x.shape[1]:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.shape}")
        if of_batch or se:
            centre, within = _passes(kernels).statistics(x)
            if of_batch:  # of all images, from those of each; the two variances are within and between images
                var, mean = torch.var_mean(centre, 0, correction=0)
                var = var + within.mean(0)
                _update(bn, mean, var, x.numel() // x.shape[1])
        else:
            assert mean is not None
            centre = mean.to(wide(x)).expand(x.shape[:2])
    excitation = (se.down.weight, se.down.bias, se.up.weight, se.up.bias) if se else (None,) * 4
    gate = se.settings.gate if se else "sigmoid"
    return _Tail.apply(x, shortcut, bn.weight, bn.bias, *excitation, centre, mean, var, bn.eps, gate, of_batch, kernels)


def _update(bn: nn.BatchNorm2d, mean: Tensor, var: Tensor, count: int) -> None:
    """Update BN's running statistics as nn.BatchNorm2d does; if momentum is None without a wait for the device."""
    if (
        not (bn.training and bn.track_running_stats)
        or bn.running_mean is None
        or bn.running_var is None
        or bn.num_batches_tracked is None
    ):
        return
    bn.num_batches_tracked.add_(1)
    share = 1 / bn.num_batches_tracked if bn.momentum is None else bn.momentum
    for running, new in ((bn.running_mean, mean), (bn.running_var, var * (count / (count - 1)))):
        running.copy_(running * (1 - share) + new * share)


class _Tail(torch.autograd.Function):
    """Compute the tail and its gradients, also through `mean` and `var`, if `of_batch`, and `centre`, for SE."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shortcut: Tensor, weight: Tensor, bias: Tensor,
        down: Tensor | None, down_bias: Tensor | None, up: Tensor | None, up_bias: Tensor | None,
        centre: Tensor, mean: Tensor, var: Tensor, eps: float, gate: str, of_batch: bool, kernels: bool,
    ) -> Tensor:  # fmt: skip
        dtype = wide(x)
        with torch.autocast(x.device.type, enabled=False):
            mean, bias_ = mean.to(dtype), bias.to(dtype)
            scale = torch.rsqrt(var.to(dtype) + eps)
            a = weight.to(dtype) * scale
            p = a * (centre - mean) + bias_
            hidden = s = None
            slope, offset = a.expand_as(p), p
            if down is not None and up is not None:
                hidden = torch.relu(_linear(p, down, down_bias))
                s = GATES[gate](_linear(hidden, up, up_bias))
                slope, offset = a * s, p * s
            out = _passes(kernels).join(x, shortcut, centre, slope, offset)
        ctx.save_for_backward(x, out, weight, bias, down, down_bias, up, up_bias, centre, mean, scale, hidden, s)
        ctx.gate, ctx.of_batch, ctx.kernels, ctx.shortcut_dtype = gate, of_batch, kernels, shortcut.dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, out, weight, bias, down, down_bias, up, up_bias, centre, mean, scale, hidden, s = ctx.saved_tensors
        dtype, passes = wide(x), _passes(ctx.kernels)
        with torch.autocast(x.device.type, enabled=False):
            d, sum1, sum2 = passes.sums(grad, out, x, centre)
            away, a = centre - mean, weight.to(dtype) * scale
            slope, offset = a.expand_as(sum1), torch.zeros_like(sum1)
            dz, dz_away = sum1, sum2 + away * sum1  # sums of BN's output's gradient, and of that times (x - mean)
            ddown = ddown_bias = dup = dup_bias = None
            if s is not None:
                p = a * away + bias.to(dtype)
                du = (a * sum2 + p * sum1) * SLOPES[ctx.gate](s)
                dh = (du @ up.flatten(1).to(dtype)) * (hidden > 0)
                dp = dh @ down.flatten(1).to(dtype)
                dup, ddown = _as(up, du.t() @ hidden), _as(down, dh.t() @ p)
                dup_bias = du.sum(0).to(up.dtype) if up_bias is not None else None
                ddown_bias = dh.sum(0).to(down.dtype) if down_bias is not None else None
                dz, dz_away = s * dz + dp, s * dz_away + dp * away
                slope, offset = a * s, a * dp / (x.shape[2] * x.shape[3])
            dbias, dweight = dz.sum(0), dz_away.sum(0) * scale
            tilt = torch.zeros_like(a)
            if ctx.of_batch:
                count = x.numel() // x.shape[1]
                tilt = -a * scale * dweight / count
                offset = offset + tilt * away - a * dbias / count
            dx = passes.gradient(d, x, centre, slope, tilt, offset)
        dshortcut = d.to(ctx.shortcut_dtype)
        known = (dx, dshortcut, dweight.to(weight.dtype), dbias.to(bias.dtype), ddown, ddown_bias, dup, dup_bias)
        return (*known, *(None,) * 7)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply a 1x1 convolution to [N, C]."""
    y = x @ weight.flatten(1).to(x.dtype).t()
    return y if bias is None else y + bias.to(x.dtype)


def _as(weight: Tensor, gradient: Tensor) -> Tensor:
    """Return [out, in] as the gradient of a 1x1 convolution, in its weight's strides: DDP copies others."""
    return gradient.to(weight.dtype).as_strided(weight.shape, weight.stride())


def wide(x: Tensor) -> torch.dtype:
    """Return the precision of sums."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _passes(kernels: bool) -> Any:
    """Return the class that reads and writes the large tensors."""
    if not kernels:
        return Operators
    from senet.execution.kernels import Kernels  # the package triton may be missing

    return Kernels


class Operators:
    """The four passes in PyTorch: maps are [N, C, H, W], a number for each image's channel [N, C]."""

    @staticmethod
    def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance [N, C] over the map. One read."""
        if torch.compiler.is_compiling():
            return shifted(x)
        var, mean = torch.var_mean(x.to(wide(x)), (2, 3), correction=0)
        return mean, var

    @staticmethod
    def join(x: Tensor, shortcut: Tensor, centre: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
        """Return relu(slope (x - centre) + offset + shortcut). Two reads, one write."""
        y = over_map(slope) * (x - over_map(centre)) + over_map(offset) + shortcut
        # Nothing may follow the ReLU: of an output made by a conversion to its own type, Dynamo of torch 2.11 loses the
        # gradient, without a word.
        return torch.relu(y.to(torch.promote_types(x.dtype, shortcut.dtype)))

    @staticmethod
    def sums(grad: Tensor, out: Tensor, x: Tensor, centre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return d, that is `grad` where `out` came through the ReLU, and the sums [N, C] of d and of d (x - centre).
        Three reads, one write.
        """
        # The comparison must seem to need `grad`: otherwise a compiler makes it in the forward pass, and keeps a byte
        # more for each value.
        zero = grad.abs().clamp(max=0) if torch.compiler.is_compiling() else 0
        d = torch.where(out <= zero, 0, grad)
        wide_d = d.to(wide(x))
        return d, wide_d.sum((2, 3)), (wide_d * (x - over_map(centre))).sum((2, 3))

    @staticmethod
    def gradient(d: Tensor, x: Tensor, centre: Tensor, slope: Tensor, tilt: Tensor, offset: Tensor) -> Tensor:
        """Return slope d + tilt (x - centre) + offset; `tilt` is [C]. Two reads, one write."""
        return (over_map(slope) * d + tilt[:, None, None] * (x - over_map(centre)) + over_map(offset)).to(x.dtype)


def shifted(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `Operators.statistics` does, from sums about one pixel of each map, which is near enough to the mean.

    Inductor makes two passes of torch.var_mean for some sizes and layouts, and one of this.
    """
    about = x[:, :, 0, 0].to(wide(x))
    centred = x - over_map(about)
    shift = centred.mean((2, 3))
    return about + shift, ((centred * centred).mean((2, 3)) - shift * shift).clamp(min=0)


def over_map(values: Tensor) -> Tensor:
    """Return [N, C] as [N, C, 1, 1]."""
    return values[:, :, None, None]
