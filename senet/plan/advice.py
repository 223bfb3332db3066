"""What is wrong with a plan, and what to change."""

from __future__ import annotations

import math
from collections.abc import Iterator

from senet.config import SGD, Folder, divide_batch
from senet.errors import UsageError
from senet.plan.planner import Plan

# Batches above which warm-up with a scaled rate is needed (Goyal et al.), and layer-wise rates.
WARM, LAYERWISE = 8192, 32768
PAPER = 0.6 / 1024  # learning rate an image of a batch (section 5.1)
EFFICIENT, AIM = 0.70, 0.80


def advice(plan: Plan) -> Iterator[str]:
    """Yield a line for each thing that the trainer would refuse, or that costs accuracy, time or money."""
    yield from _batch(plan)
    yield from _pace(plan)
    yield from _supply(plan)
    each, largest = plan.batch_per_gpu, plan.largest_batch
    if largest < 1:
        yield f"not one image fits into {plan.gpu.memory:g} GB"
    elif each > largest:
        fits = next((n for n in range(largest, 0, -1) if each % n == 0), 1)
        need = f"{each:.4g} images a GPU need about {plan.memory_gb:.0f} GB of {plan.gpu.memory:g}"
        yield f"{need}: --largest-batch {fits} accumulates gradients instead"


def _batch(plan: Plan) -> Iterator[str]:
    config = plan.config
    try:
        divide_batch(config.batch, plan.request.gpus)
    except UsageError as refusal:
        yield f"the trainer refuses this: {refusal}"
    batch, rate, ruled = f"batch {config.batch:,}", config.optim.lr, PAPER * config.batch
    sgd = isinstance(config.optim, SGD)
    if config.batch > LAYERWISE and sgd:
        yield f"{batch} is above 32k: SGD loses accuracy there without layer-wise rates (optim.name=lars)"
    elif config.batch > WARM and config.schedule.warmup is None:
        yield f"{batch} is above 8k: warm up, as in schedule.warmup=linear schedule.warmup.epochs=5"
    if sgd and isinstance(config.data, Folder) and config.data.classes == 1000 and not 0.5 <= rate / ruled <= 2:
        rule = f"0.6 at batch 1,024 makes {ruled:.3g} at {config.batch:,}"
        yield f"optim.lr {rate:g} is far from the linear rule: {rule}"


def _pace(plan: Plan) -> Iterator[str]:
    config, request, step = plan.config, plan.request, plan.step
    if plan.efficiency < EFFICIENT:
        fewer = max((n for n, _, share in plan.curve()["global"] if n < request.gpus and share >= AIM), default=None)
        enough = _enough(plan)
        remedies = [f"batch={enough} with its learning rate"] if enough and enough <= LAYERWISE else []
        remedies += [f"{fewer} GPU{'s' * (fewer > 1)} instead"] if fewer else []
        by_host = plan.rate.floor > plan.rate.each * plan.batch_per_gpu
        why = (
            "the host cannot start kernels fast enough" if by_host else f"{plan.batch_per_gpu:.4g} images a GPU are few"
        )
        cure = f"; {' or '.join(remedies)} would reach {100 * AIM:.0f} %" if remedies else ""
        yield f"efficiency {100 * plan.efficiency:.0f} %: {why}{cure}"
    cure = "more images a GPU, compress=bf16 (gradients in half the bytes), or a faster network"
    if step.exposed > 0.1 * step.total:
        yield f"communication that nothing hides takes {100 * step.exposed / step.total:.0f} % of a step: {cure}"
    if plan.network_needed > plan.network / 2:
        need = f"{plan.network_needed:.2g} GB/s of a node's network, more than half of {plan.network:g}"
        yield f"gradients need {need}: {cure}"
    if config.precision in ("fp32", "tf32"):
        half = "fp16" if request.gpu == "v100" else "bf16"
        yield f"precision {config.precision}: {half} would take about half the time"
    if config.precision == "bf16" and request.gpu == "v100":
        yield "V100 has no matrix units for bf16: use precision=fp16"


def _enough(plan: Plan) -> int | None:
    """Return the batch, a power of two on each GPU, that uses the GPUs well; None if memory cannot hold it."""
    sizes = (2**power for power in range(14))
    each = next((n for n in sizes if plan.rate.each * n / plan.step_of(n).total >= AIM), math.inf)
    return int(each) * plan.request.gpus if each <= plan.largest_batch else None


def _supply(plan: Plan) -> Iterator[str]:
    request, data = plan.request, plan.config.data
    smaller = f"--short-side {max(256, data.resize) if isinstance(data, Folder) else 256}"
    if request.storage is not None and plan.storage_needed > request.storage:
        wants = f"the first epoch wants {plan.storage_needed:.2g} GB/s and there are {request.storage:g}"
        yield f"storage: {wants}; shrink the set (launch.prepare imagenet --shards {smaller}) or copy it to each node"
    if plan.bound == "decoding":
        own = " and the GPU decoders" if plan.decode_on_gpu is not None else ""
        give = f"{request.cores} cores a node{own} give {plan.decoding:,.0f} images/s"
        yield f"decoding bounds: {give}; more cores, or smaller images ({smaller}; at 256 a net's loss rose by 0.009)"
        yield f"{math.ceil(plan.cores['decoded shards'])} cores a node read decoded shards (--decoded {smaller})"
    elif plan.cores and request.cores is None and not plan.decode_on_gpu:
        needed = f"{math.ceil(plan.cores['this loader'])} cores a node decode; --cores N checks yours"
        yield f"{request.gpu} has no decoder that is known to keep up: {needed}"
