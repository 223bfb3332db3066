"""What is wrong with a plan, and what to change."""

from __future__ import annotations

import math
from collections.abc import Iterator

from senet.config import SGD, Config, Folder, divide_batch
from senet.errors import UsageError
from senet.plan.planner import Model, Plan, curve

# Batches above which warm-up with a scaled rate is needed (Goyal et al.), and layer-wise rates.
WARM, LAYERWISE = 8192, 32768
PAPER = 0.6 / 1024  # learning rate an image of a batch (section 5.1)
EFFICIENT, AIM = 0.70, 0.80


def advice(config: Config, plan: Plan) -> Iterator[str]:
    """Yield a line for each thing that the trainer would refuse, or that costs accuracy, time or money."""
    yield from _batch(config, plan)
    yield from _pace(config, plan)
    yield from _supply(config, plan)
    memory = plan.memory
    if memory.largest_batch < 1:
        yield f"not one image fits into {memory.given:g} GB"
    elif plan.batch_per_gpu > memory.largest_batch:
        fits = next((n for n in range(memory.largest_batch, 0, -1) if plan.batch_per_gpu % n == 0), 1)
        need = f"{plan.batch_per_gpu:.4g} images a GPU need about {memory.gigabytes:.0f} GB of {memory.given:g}"
        yield f"{need}: --largest-batch {fits} accumulates gradients instead"


def _batch(config: Config, plan: Plan) -> Iterator[str]:
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


def _pace(config: Config, plan: Plan) -> Iterator[str]:
    request, step, each = plan.request, plan.step, f"{plan.batch_per_gpu:.4g} images a GPU"
    if plan.efficiency < EFFICIENT:
        by_gpus = curve(config, request)["global"]
        fewer = max((n for n, _, share in by_gpus if n < request.gpus and share >= AIM), default=None)
        enough = _enough(config, plan)
        remedies = [f"batch={enough} with its learning rate"] if enough and enough <= LAYERWISE else []
        remedies += [f"{fewer} GPU{'s' * (fewer > 1)} instead"] if fewer else []
        by_host = plan.rate.floor > plan.rate.each * plan.batch_per_gpu
        why = "the host cannot start kernels fast enough" if by_host else f"{each} are few"
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


def _enough(config: Config, plan: Plan) -> int | None:
    """Return the batch, a power of two on each GPU, that uses the GPUs well; None if memory cannot hold it."""
    model = Model(config, plan.request)
    for each in (2**power for power in range(14)):
        if model.rate.each * each / model.step(each).total >= AIM:
            return each * plan.request.gpus if each <= plan.memory.largest_batch else None
    return None


def _supply(config: Config, plan: Plan) -> Iterator[str]:
    request, data = plan.request, plan.data
    smaller = f"--short-side {max(256, config.data.resize) if isinstance(config.data, Folder) else 256}"
    if request.storage is not None and data.storage > request.storage:
        wants = f"the first epoch wants {data.storage:.2g} GB/s and there are {request.storage:g}"
        yield f"storage: {wants}; shrink the set (launch.prepare imagenet --shards {smaller}) or copy it to each node"
    if plan.bound == "decoding":
        own = " and the GPU decoders" if data.decode_on_gpu is not None else ""
        give = f"{request.cores} cores a node{own} give {data.limit:,.0f} images/s"
        yield f"decoding bounds: {give}; more cores, or smaller images ({smaller}; at 256 a net's loss rose by 0.009)"
        yield f"{math.ceil(data.cores['decoded shards'])} cores a node read decoded shards (--decoded {smaller})"
    elif data.cores and request.cores is None and not data.decode_on_gpu:
        needed = f"{math.ceil(data.cores['this loader'])} cores a node decode; --cores N checks yours"
        yield f"{request.gpu} has no decoder that is known to keep up: {needed}"
