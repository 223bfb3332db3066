"""What is wrong with a plan, and what to change."""

from __future__ import annotations

import math
from collections.abc import Iterator

from senet.config import Config, Folder
from senet.plan import scale
from senet.plan.planner import Plan, curve, dividing

WARM, LAYERWISE = (
    8192,
    32768,
)  # batches above which warm-up with a scaled rate is needed (Goyal et al.), and layer-wise rates
PAPER = 0.6 / 1024  # learning rate an image of a batch (section 5.1)
EFFICIENT, AIM = 0.70, 0.80


def advice(config: Config, plan: Plan) -> Iterator[str]:
    yield from _batch(config, plan)
    yield from _pace(config, plan)
    yield from _supply(config, plan)
    yield from _memory(plan)


def _batch(config: Config, plan: Plan) -> Iterator[str]:
    if refusal := dividing(config, plan.wish.gpus):
        yield f"the trainer refuses this: {refusal}"
    if config.batch > LAYERWISE:
        yield (
            f"batch {config.batch:,} is above 32k: SGD loses accuracy there without layer-wise rates (LARS), "
            "which this trainer has not"
        )
    elif config.batch > WARM and config.schedule.warmup is None:
        yield f"batch {config.batch:,} is above 8k: warm up, as in schedule.warmup=linear schedule.warmup.epochs=5"
    ruled = PAPER * config.batch
    if config.data.set == "folder" and config.data.classes == 1000 and not 0.5 <= config.optim.lr / ruled <= 2:
        yield (
            f"optim.lr {config.optim.lr:g} is far from the linear rule: 0.6 at batch 1,024 makes "
            f"{ruled:.3g} at {config.batch:,}"
        )


def _pace(config: Config, plan: Plan) -> Iterator[str]:
    wish, step = plan.wish, plan.step
    if plan.efficiency < EFFICIENT:
        enough = _enough(plan)
        better = enough if enough and enough * wish.gpus <= LAYERWISE else None
        fewer = max(
            (n for n, _, share in curve(config, wish)["global"] if n < wish.gpus and share >= AIM), default=None
        )
        remedies = [f"batch={better * wish.gpus} with its learning rate"] if better else []
        remedies += [f"{fewer} GPU{'s' * (fewer > 1)} instead"] if fewer else []
        bounded = plan.rate.floor > plan.rate.each * plan.batch_per_gpu
        why = (
            "the host cannot start kernels fast enough" if bounded else f"{plan.batch_per_gpu:.4g} images a GPU are few"
        )
        cure = f"; {' or '.join(remedies)} would reach {100 * AIM:.0f} %" if remedies else ""
        yield f"efficiency {100 * plan.efficiency:.0f} %: {why}{cure}"
    if step.exposed > 0.1 * step.total:
        yield (
            f"communication that nothing hides takes {100 * step.exposed / step.total:.0f} % of a step: a faster "
            "network, gradients in "
            "bf16, or more images a GPU"
        )
    if plan.network.needed > plan.network.given / 2:
        yield (
            f"gradients need {plan.network.needed:.2g} GB/s of a node's network, more than half of "
            f"{plan.network.given:g}: "
            "more images a GPU, gradients in bf16, or a faster network"
        )
    if config.precision == "fp32":
        yield f"precision fp32: {'fp16' if wish.gpu == 'v100' else 'bf16'} would take about half the time"
    if config.precision == "bf16" and wish.gpu == "v100":
        yield "V100 has no matrix units for bf16: use precision=fp16"


def _enough(plan: Plan) -> int | None:
    """Images a GPU, a power of two, with which the GPUs are used well; None where memory holds no such batch."""
    for power in range(14):
        batch = 2**power
        total = (
            scale.step(plan.rate.compute(batch), 0, scale.Cluster(1), plan.rate.fixed).total
            + plan.step.exposed
            + plan.step.jitter
        )
        if plan.rate.each * batch / total >= AIM:
            return batch if batch <= plan.memory.largest_batch else None
    return None


def _supply(config: Config, plan: Plan) -> Iterator[str]:
    wish, data = plan.wish, plan.data
    side = max(256, config.data.resize) if isinstance(config.data, Folder) else 0
    if wish.storage is not None and data.storage > wish.storage:
        smaller = f"shrink the set (launch.prepare imagenet --shards --short-side {side})"
        yield (
            f"storage: the first epoch wants {data.storage:.2g} GB/s and there are {wish.storage:g}; {smaller} "
            "or copy it to each node"
        )
    if plan.bound == "decoding":
        yield (
            f"decoding bounds: {wish.cores} cores a "
            f"node{' and the GPU decoders' if data.decode_on_gpu is not None else ''} give "
            f"{data.limit:,.0f} images/s; more cores, or smaller images (--short-side {side})"
        )
    elif data.cores and wish.cores is None and not data.decode_on_gpu:
        needed = data.cores["this loader"]
        yield (
            f"{wish.gpu} has no decoder that is known to keep up: {math.ceil(needed)} cores a node decode; "
            "--cores N checks yours"
        )


def _memory(plan: Plan) -> Iterator[str]:
    memory = plan.memory
    if memory.largest_batch < 1:
        yield f"not one image fits into {memory.given:g} GB"
    elif plan.batch_per_gpu > memory.largest_batch:
        fits = next((n for n in range(int(memory.largest_batch), 0, -1) if plan.batch_per_gpu % n == 0), 1)
        yield (
            f"{plan.batch_per_gpu:.4g} images a GPU need about {memory.gigabytes:.0f} GB of {memory.given:g}: "
            f"--largest-batch {fits} "
            "accumulates gradients instead"
        )
