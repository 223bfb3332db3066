"""The four passes of the fused SE tail as Triton kernels, in either layout. No other file imports triton.

Each program goes over `PIXELS` x `CHANNELS` tiles of one image and keeps its sums to itself: there are no atomics, so
equal inputs give equal bits. How the work is divided follows from shapes alone. The kernels are operators of
torch.library, so that Inductor compiles around them.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

TILE = 2048  # elements a program holds of each tensor
PROGRAMS = 2048  # wanted at least, to fill a GPU; maps are split for it


class Kernels:
    """The passes of `senet.execution.tail.Operators`, with sums in float32: they are not for float64."""

    @staticmethod
    def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
        mean, square, size = torch.ops.senet.tail_statistics(x)
        total = x.shape[2] * x.shape[3]
        if len(mean) == 1:
            return mean[0], square[0] / total
        # From the parts of a map to the map: the variance within parts and that between them.
        of_map = (mean * size).sum(0) / total
        return of_map, (square + size * (mean - of_map) ** 2).sum(0) / total

    @staticmethod
    def join(x: Tensor, shortcut: Tensor, centre: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
        return torch.ops.senet.tail_join(x, shortcut, centre, slope, offset)

    @staticmethod
    def sums(grad: Tensor, out: Tensor, x: Tensor, centre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        d, sum1, sum2 = torch.ops.senet.tail_sums(grad, out, x, centre)
        return d, sum1.sum(0), sum2.sum(0)

    @staticmethod
    def gradient(d: Tensor, x: Tensor, centre: Tensor, slope: Tensor, tilt: Tensor, offset: Tensor) -> Tensor:
        return torch.ops.senet.tail_gradient(d, x, centre, slope, tilt, offset)


# ------------------------------------------------------------------------------------------------------------ operators


def operator(compute: Callable[..., Any]) -> Any:
    """Register a function as the operator `senet::NAME`. The compiler, too, learns from it what comes out: it calls it
    with tensors that hold nothing, for which `launch` starts nothing.
    """
    registered = torch.library.custom_op(f"senet::{compute.__name__}", compute, mutates_args=())
    registered.register_fake(compute)
    return registered


@operator
def tail_statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and sum of squares about it [S, N, C] of the S parts of each map of `x` [N, C, H, W], and the sizes
    of the parts [S, 1, 1].
    """
    x = dense(x)
    mean, square, size = per_part(x), per_part(x), x.new_empty(split(x)[0], 1, 1, dtype=torch.float32)
    launch(statistics_kernel, x, x, mean, square, size)
    return mean, square, size


@operator
def tail_join(x: Tensor, shortcut: Tensor, centre: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    x = dense(x)
    out = torch.empty_like(x, dtype=torch.promote_types(x.dtype, shortcut.dtype))
    launch(join_kernel, x, x, like(shortcut, x), rows(centre, x), rows(slope, x), rows(offset, x), out)
    return out


@operator
def tail_sums(grad: Tensor, out: Tensor, x: Tensor, centre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return d, of the shape of `grad`, and the two sums [S, N, C] over the S parts of each map."""
    x = dense(x)
    d, sum1, sum2 = torch.empty_like(x, dtype=grad.dtype), per_part(x), per_part(x)
    launch(sums_kernel, x, like(grad, x), like(out, x), x, rows(centre, x), d, sum1, sum2)
    return d, sum1, sum2


@operator
def tail_gradient(d: Tensor, x: Tensor, centre: Tensor, slope: Tensor, tilt: Tensor, offset: Tensor) -> Tensor:
    x = dense(x)
    dx = torch.empty_like(x)
    launch(gradient_kernel, x, like(d, x), x, rows(centre, x), rows(slope, x), tilt.float(), rows(offset, x), dx)
    return dx


# ---------------------------------------------------------------------------------------------------- dividing the work


def channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def dense(x: Tensor) -> Tensor:
    """Return `x` in one of the two layouts: itself if it is in one already."""
    return x if channels_last(x) else x.contiguous()


def like(other: Tensor, x: Tensor) -> Tensor:
    """Return `other` in the layout of `x`."""
    return other.contiguous(memory_format=torch.channels_last if channels_last(x) else torch.contiguous_format)


def rows(values: Tensor, x: Tensor) -> Tensor:
    """Return [N or 1, C] as float32 [N, C]."""
    return values.float().expand(x.shape[0], x.shape[1]).contiguous()


def per_part(x: Tensor) -> Tensor:
    """Return room for a number of each part of each map: float32 [S, N, C]."""
    return x.new_empty(split(x)[0], x.shape[0], x.shape[1], dtype=torch.float32)


def tile(x: Tensor) -> tuple[int, int]:
    """Return the pixels and channels of a tile: along memory as far as loads are wide, then across."""
    pixels, channels = triton.next_power_of_2(x.shape[2] * x.shape[3]), triton.next_power_of_2(x.shape[1])
    if channels_last(x):
        across = min(channels, 64)
        return min(pixels, TILE // across), across
    along = min(pixels, 512)
    return along, min(channels, TILE // along)


def split(x: Tensor) -> tuple[int, int]:
    """Return into how many parts each map is cut, and the pixels of a part: enough parts for `PROGRAMS` programs, but
    each of whole tiles, at least four.
    """
    pixels, channels = tile(x)
    tiles = triton.cdiv(x.shape[2] * x.shape[3], pixels)
    programs = x.shape[0] * triton.cdiv(x.shape[1], channels)
    wanted = max(1, min(PROGRAMS // programs, triton.cdiv(tiles, 4)))
    each = triton.cdiv(tiles, wanted)
    return triton.cdiv(tiles, each), each * pixels


def launch(kernel: Any, x: Tensor, *tensors: Tensor) -> None:
    """Start the programs of a kernel on `tensors`, divided as suits `x`."""
    if isinstance(x, FakeTensor):
        return
    (count, channels, height, width), (pixels_tile, channels_tile), (parts, length) = x.shape, tile(x), split(x)
    pixels = height * width
    aligned = next(size for size in (16, 8, 4, 2, 1) if pixels % size == 0)
    shapes = (count, channels, pixels, length, channels_last(x), aligned)
    grid = (count * triton.cdiv(channels, channels_tile), parts)
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        kernel[grid](*tensors, *shapes, PIXELS=pixels_tile, CHANNELS=channels_tile)


# -------------------------------------------------------------------------------------------------------------- kernels
# Offsets within an image fit 32 bits, those of images need not.


@triton.jit
def work(channels, pixels, length, CHANNELS: tl.constexpr):
    """Return the image of this program, its channels, which of them exist, and its first and last pixel."""
    blocks = tl.cdiv(channels, CHANNELS)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    channel = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    first = tl.program_id(1) * length
    return image, channel, channel < channels, first, tl.minimum(first + length, pixels)


@triton.jit
def offsets(start, channel, exists, channels, pixels, LAST: tl.constexpr, ALIGNED: tl.constexpr, PIXELS: tl.constexpr):
    """Return the offsets of a tile in its image, and which of them are in it: only the image's end can cut a tile."""
    pixel = start + tl.arange(0, PIXELS)
    # This says that 14 x 14, which is no multiple of 16, is one of 4: loads of 8 bytes rather than 2.
    pixels = pixels // ALIGNED * ALIGNED
    at = pixel[:, None] * channels + channel[None, :] if LAST else pixel[:, None] + channel[None, :] * pixels
    return at, (pixel < pixels)[:, None] & exists[None, :]


@triton.jit
def statistics_kernel(
    x, mean, square, size,
    count, channels, pixels, length,
    LAST: tl.constexpr, ALIGNED: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    image, channel, exists, first, last = work(channels, pixels, length, CHANNELS)
    x += image * channels * pixels
    # Sums about the mean of the first tile: near enough to the mean of all that their difference costs no digits.
    at, inside = offsets(first, channel, exists, channels, pixels, LAST, ALIGNED, PIXELS)
    about = tl.sum(tl.load(x + at, inside, 0.0).to(tl.float32), 0) / tl.minimum(last - first, PIXELS)
    sum1 = tl.zeros([PIXELS, CHANNELS], tl.float32)
    sum2 = tl.zeros([PIXELS, CHANNELS], tl.float32)
    for start in range(first, last, PIXELS):
        at, inside = offsets(start, channel, exists, channels, pixels, LAST, ALIGNED, PIXELS)
        centred = tl.where(inside, tl.load(x + at, inside, 0.0).to(tl.float32) - about[None, :], 0.0)
        sum1 += centred
        sum2 += centred * centred
    total = tl.sum(sum1, 0)
    shift = total / (last - first)
    into = (tl.program_id(1).to(tl.int64) * count + image) * channels + channel
    tl.store(mean + into, about + shift, exists)
    tl.store(square + into, tl.sum(sum2, 0) - total * shift, exists)
    tl.store(size + tl.program_id(1), (last - first).to(tl.float32))  # the same from every image


@triton.jit
def join_kernel(
    x, shortcut, centre, slope, offset, out,
    count, channels, pixels, length,
    LAST: tl.constexpr, ALIGNED: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    image, channel, exists, first, last = work(channels, pixels, length, CHANNELS)
    x += image * channels * pixels
    shortcut += image * channels * pixels
    out += image * channels * pixels
    mu = tl.load(centre + image * channels + channel, exists, 0.0)[None, :]
    a = tl.load(slope + image * channels + channel, exists, 0.0)[None, :]
    b = tl.load(offset + image * channels + channel, exists, 0.0)[None, :]
    for start in range(first, last, PIXELS):
        at, inside = offsets(start, channel, exists, channels, pixels, LAST, ALIGNED, PIXELS)
        y = a * (tl.load(x + at, inside, 0.0).to(tl.float32) - mu) + b
        y += tl.load(shortcut + at, inside, 0.0).to(tl.float32)
        tl.store(out + at, tl.where(y < 0, 0.0, y), inside)  # not tl.maximum, which loses NaN


@triton.jit
def sums_kernel(
    grad, out, x, centre, d, sum1, sum2,
    count, channels, pixels, length,
    LAST: tl.constexpr, ALIGNED: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    image, channel, exists, first, last = work(channels, pixels, length, CHANNELS)
    grad += image * channels * pixels
    out += image * channels * pixels
    x += image * channels * pixels
    d += image * channels * pixels
    mu = tl.load(centre + image * channels + channel, exists, 0.0)[None, :]
    plain = tl.zeros([PIXELS, CHANNELS], tl.float32)
    centred = tl.zeros([PIXELS, CHANNELS], tl.float32)
    for start in range(first, last, PIXELS):
        at, inside = offsets(start, channel, exists, channels, pixels, LAST, ALIGNED, PIXELS)
        passed = tl.load(grad + at, inside, 0.0).to(tl.float32)
        passed = tl.where(tl.load(out + at, inside, 0.0).to(tl.float32) <= 0, 0.0, passed)
        tl.store(d + at, passed, inside)
        plain += passed
        centred += passed * (tl.load(x + at, inside, 0.0).to(tl.float32) - mu)
    into = (tl.program_id(1).to(tl.int64) * count + image) * channels + channel
    tl.store(sum1 + into, tl.sum(plain, 0), exists)
    tl.store(sum2 + into, tl.sum(centred, 0), exists)


@triton.jit
def gradient_kernel(
    d, x, centre, slope, tilt, offset, dx,
    count, channels, pixels, length,
    LAST: tl.constexpr, ALIGNED: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    image, channel, exists, first, last = work(channels, pixels, length, CHANNELS)
    d += image * channels * pixels
    x += image * channels * pixels
    dx += image * channels * pixels
    mu = tl.load(centre + image * channels + channel, exists, 0.0)[None, :]
    t = tl.load(tilt + channel, exists, 0.0)[None, :]
    a = tl.load(slope + image * channels + channel, exists, 0.0)[None, :]
    b = tl.load(offset + image * channels + channel, exists, 0.0)[None, :]
    for start in range(first, last, PIXELS):
        at, inside = offsets(start, channel, exists, channels, pixels, LAST, ALIGNED, PIXELS)
        centred = tl.load(x + at, inside, 0.0).to(tl.float32) - mu
        tl.store(dx + at, a * tl.load(d + at, inside, 0.0).to(tl.float32) + t * centred + b, inside)
