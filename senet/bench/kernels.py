"""Parts of the GPU bench that look below the net: waiting for the device, grouped convolutions, a profile."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from senet import config
from senet.bench.contestants import execution, ours
from senet.bench.parts import Place, shallow
from senet.system.timing import Effort, Spread, Step, measure, reason, synchronise, until
from senet.train.trainer import DTYPES

# ----------------------------------------------------------------------------------------------------------------- sync


def sync(place: Place) -> dict[str, Any]:
    """Steps of the real loop while waiting for the device is an error, for each way of computing."""
    loaded = config.load("configs/cifar10/se_resnet20.yaml")
    setting = replace(place.setting(loaded, 64), crop=32)
    hows = (
        ["channels_last", "channels_last+analytic+compile", "channels_last+triton", "channels_last+graph"]
        if place.device.type == "cuda"
        else ["channels_last", "channels_last+analytic"]
    )
    rows = []
    for how in hows:
        for precision in ("bf16", "fp16", "fp32") if place.device.type == "cuda" else ("fp32",):
            try:
                with until(place.deadline):
                    step = ours(loaded.net, replace(setting, precision=precision), execution(how))
                    for _ in range(3):
                        step()
                synchronise()
                if place.device.type == "cuda":
                    torch.cuda.set_sync_debug_mode("error")
                for _ in range(10):
                    step()
                rows.append({"how": how, "precision": precision, "failure": None})
            except Exception as error:
                rows.append({"how": how, "precision": precision, "failure": reason(error)})
            finally:
                if place.device.type == "cuda":
                    torch.cuda.set_sync_debug_mode("default")
    return {
        "rows": rows,
        "passed": all(row["failure"] is None for row in rows),
        "meaningful": place.device.type == "cuda",
    }


# ------------------------------------------------------------------------------------------------- grouped convolutions


def grouped(place: Place) -> dict[str, Any]:
    """Forward, input gradient and weight gradient of the grouped 3x3 convolutions, in both layouts, beside their bytes'
    time.
    """
    shapes = {  # channels in and out, groups, side in, stride
        "se_resnext50 stage2": (128, 128, 32, 56, 1),
        "se_resnext50 stage3": (256, 256, 32, 28, 1),
        "se_resnext50 stage4": (512, 512, 32, 14, 1),
        "se_resnext50 stage5": (1024, 1024, 32, 7, 1),
        "senet154 stage2": (128, 256, 64, 56, 1),
        "senet154 stage3": (256, 512, 64, 28, 1),
        "senet154 stage4": (512, 1024, 64, 14, 1),
        "senet154 stage5": (1024, 2048, 64, 7, 1),
    }
    batch = 2 if place.tiny else 128
    chosen = list(shapes.items())[:: 4 if place.tiny else 1]
    best, rows = place.best(), []
    for name, (inputs, outputs, groups, side, stride) in chosen:
        for layout, order in (("channels_last", torch.channels_last), ("contiguous", torch.contiguous_format)):
            dtype = DTYPES[place.precision]
            x = torch.randn(batch, inputs, side, side, device=place.device, dtype=dtype).contiguous(memory_format=order)
            w = torch.randn(outputs, inputs // groups, 3, 3, device=place.device, dtype=dtype).contiguous(
                memory_format=order
            )
            grad = torch.randn(
                batch, outputs, side // stride, side // stride, device=place.device, dtype=dtype
            ).contiguous(memory_format=order)
            floor = (x.nbytes + grad.nbytes) / best.bandwidth
            works = _directions(x, w, grad, groups, stride)
            found = measure(
                {kind: partial(_itself, work) for kind, work in works.items()},
                Effort(3, 0.02 if place.tiny else 0.1, deadline=place.deadline),
            )
            for kind, timing in found.items():
                ms = 1000 * Spread.of(timing.seconds).median if timing.seconds else None
                share = 1000 * floor / ms if ms else None
                rows.append(
                    {
                        "conv": name,
                        "layout": layout,
                        "direction": kind,
                        "ms": ms,
                        "of_bandwidth": share,
                        "failure": timing.failure,
                    }
                )
    return {"batch": batch, "precision": place.precision, "rows": rows, "best": asdict(best)}


def _itself(work: Step) -> Step:
    return work


def _directions(x: Tensor, w: Tensor, grad: Tensor, groups: int, stride: int) -> dict[str, Step]:
    def back(mask: list[bool]) -> Step:
        places = ([stride, stride], [1, 1], [1, 1], False, [0, 0])
        return lambda: torch.ops.aten.convolution_backward(grad, x, w, None, *places, groups, mask)

    return {
        "forward": lambda: torch.nn.functional.conv2d(x, w, None, stride, 1, 1, groups),
        "input gradient": back([True, False, False]),
        "weight gradient": back([False, True, False]),
    }


# -------------------------------------------------------------------------------------------------------------- profile


def profiles(place: Place) -> dict[str, Any]:
    """Where the time of SE-ResNet-50's step goes, by kernel, for the plain way and a fused one."""
    loaded = config.load("configs/imagenet/se_resnet50.yaml:v1.5")
    setting = place.setting(loaded)
    hows = (
        ["channels_last", "channels_last+triton", "channels_last+analytic+compile"]
        if place.device.type == "cuda"
        else ["channels_last"]
    )
    found = {}
    for how in hows:
        try:
            with until(place.deadline):
                step = ours(shallow(loaded.net) if place.tiny else loaded.net, setting, execution(how))
                for _ in range(1 if place.tiny else 5):
                    step()
                synchronise()
                found[how] = _profile(step, place, 3)
        except Exception as error:
            found[how] = {"failure": reason(error)}
    return {"executions": found, "batch": setting.batch}


def _profile(step: Step, place: Place, steps: int) -> dict[str, Any]:
    gpu = place.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    began = time.perf_counter()
    with profile(activities=activities) as profiler:
        for _ in range(steps):
            step()
        synchronise()
    seconds = (time.perf_counter() - began) / steps
    rows = []
    for event in profiler.key_averages():
        on_device = str(getattr(event, "device_type", "")).rpartition(".")[2] == "CUDA"
        if gpu != on_device or getattr(event, "is_user_annotation", False):
            continue  # what started the kernels, or stands for many of them: their time would count twice
        micro = event.self_device_time_total if gpu else event.self_cpu_time_total
        if micro > 0:
            rows.append({"kernel": event.key[:160], "calls": event.count / steps, "ms": micro / 1000 / steps})
    total = sum(row["ms"] for row in rows)
    rows.sort(key=lambda row: -row["ms"])
    kinds: dict[str, float] = {}
    for row in rows:
        kinds[kind_of(row["kernel"])] = kinds.get(kind_of(row["kernel"]), 0.0) + row["ms"]
    kinds = dict(sorted(kinds.items(), key=lambda item: -item[1]))
    return {"failure": None, "ms_a_step": 1000 * seconds, "busy_ms": total, "kinds": kinds, "top": rows[:30]}


def kind_of(kernel: str) -> str:
    """What a kernel does, as far as its name tells."""
    name = kernel.lower()
    for kind, words in {
        "copies": ("memcpy", "memset", "copy"),
        "compiled (Inductor, Triton)": ("triton_",),
        "fused tail (Triton)": ("statistics_kernel", "join_kernel", "sums_kernel", "gradient_kernel"),
        "optimiser, checks": ("multi_tensor", "foreach", "sgd"),
        "batch normalisation": ("batch_norm", "bn_fw", "bn_bw", "batchnorm"),
        "convolutions": (
            "conv",
            "gemm",
            "wgrad",
            "dgrad",
            "xmma",
            "cutlass",
            "implicit",
            "cudnn",
            "nhwckrsc",
            "nchwto",
            "nhwcto",
            "mm_",
        ),
        "pooling": ("pool",),
        "reductions": ("reduce", "softmax", "nll"),
        "element by element": ("elementwise", "aten::", "add", "mul", "relu"),
    }.items():
        if any(word in name for word in words):
            return kind
    return "other"
