"""A plan on a page, as JSON, and as a picture."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from senet.config import Config
from senet.plan import gpus, planner, rates, scale, traffic
from senet.plan.advice import advice
from senet.plan.planner import Plan, Request, curve


def page(config: Config, name: str, plan: Plan) -> str:
    wish = plan.wish
    here = planner.cluster(wish, gpus.find(wish.gpu))
    rate, found = plan.rate, list(advice(config, plan))
    lines = [
        f"{name} on {wish.gpus:,} {wish.gpu.upper()} in {here.nodes:,} node{'s' * (here.nodes > 1)}, "
        f"{config.precision}, {wish.stack}",
        _row(
            "net",
            f"{plan.parameters / 1e6:.1f} M parameters, {plan.gmacs:.2f} G multiply-adds, {plan.megabytes:.0f} "
            "MB of traffic an image",
        ),
        _row(
            "one GPU",
            f"{1 / rate.each:,.0f} images/s with large batches, ± {100 * rate.spread:.0f} %; {rate.basis}: {rate.said}",
        ),
        "",
        *_pace(plan, here),
        "",
        *_data(plan, here.nodes),
        _row("network", _network(plan, here)),
        _row(
            "memory",
            f"about {_gigabytes(plan)} of {plan.memory.given:g} GB a GPU; up to "
            f"{plan.memory.largest_batch:,} images at once",
        ),
        _row(
            "failures",
            f"one in {plan.failures.mtbf_hours:,.0f} h, {plan.failures.expected:.2g} in this run; {_lost(plan)}",
        ),
        _row("checkpoints", f"every {plan.failures.interval_minutes:.0f} min (Young){_epoch(plan)}"),
        "",
    ]
    return "\n".join([*lines, *(f"warning: {line}" for line in found)] if found else [*lines, "no warnings"])


def _pace(plan: Plan, here: scale.Cluster) -> list[str]:
    wish, step = plan.wish, plan.step
    each = plan.images_per_second / wish.gpus
    said = (
        f"{1e3 * step.total:.1f} ms for {plan.batch:,} images, {plan.batch_per_gpu:.4g} a GPU; efficiency "
        f"{100 * plan.efficiency:.0f} %"
    )
    lines = [
        _row("images/s", f"{plan.images_per_second:,.0f} in all, {each:,.0f} a GPU; bound by the {plan.bound}"),
        _row("step", said),
    ]
    for what, seconds in (
        ("compute", step.compute),
        ("fixed", step.fixed),
        ("communication", step.exposed),
        ("slowest rank", step.jitter),
    ):
        hidden = (
            f"   ({1e3 * (step.all_reduce - step.exposed):.2f} ms more are hidden)"
            if what == "communication" and here.gpus > 1
            else ""
        )
        lines.append(_row("", f"{what:14}{1e3 * seconds:8.2f} ms {100 * seconds / step.total:4.0f} %{hidden}"))
    parts = f"training {_time(plan.training_hours)}, validation {_time(plan.validation_hours)}"
    money = (
        f", ${plan.cost:,.2f} at ${plan.wish.price:g} each" if plan.cost is not None else " (--price $ makes it money)"
    )
    return [
        *lines,
        _row("time", f"{_time(plan.hours)} for {plan.epochs} epochs of {plan.steps_per_epoch:,} steps ({parts})"),
        _row("cost", f"{plan.gpu_hours:,.4g} GPU-hours{money}"),
    ]


def _network(plan: Plan, here: scale.Cluster) -> str:
    if here.nodes == 1:
        return "within one node"
    needed = f"{plan.network.needed:.2g} GB/s of a node's {plan.network.given:g} for gradients"
    return f"{needed}; all-reduce {1e3 * plan.step.all_reduce:.2f} ms"


def _gigabytes(plan: Plan) -> str:
    return f"{plan.memory.gigabytes:.1f}"


def _lost(plan: Plan) -> str:
    return f"they and checkpoints cost {100 * plan.failures.loss:.1f} % of it"


def _row(name: str, text: str) -> str:
    return f"{name:14}{text}"


def _time(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:.1f} days"
    return f"{hours:.1f} h" if hours >= 2 else f"{60 * hours:.0f} min" if hours >= 1 / 30 else f"{3600 * hours:.0f} s"


def _epoch(plan: Plan) -> str:
    minutes = 60 * plan.training_hours / max(plan.epochs, 1)
    enough = minutes <= plan.failures.interval_minutes
    return (
        f"; an epoch takes {minutes:.1f} min and saves at its end, "
        f"{'which is enough' if enough else 'so set --save-minutes'}"
    )


def _data(plan: Plan, nodes: int) -> list[str]:
    data = plan.data
    if not data.cores:
        return [_row("data", f"{data.images:,} images, held on each device")]
    cache = "the page cache holds it after the first epoch"
    if nodes > 1:
        cache = f"page caches hold nine tenths of it after {data.cached_after} epochs"
    cores = ", ".join(f"{math.ceil(number):,} ({name})" for name, number in data.cores.items())
    keeps = {None: "no decoder on this GPU is known to keep up", True: "or the GPU's own decoder, which keeps up"}
    keeps[False] = "the GPU's own decoder does not keep up"
    return [
        _row(
            "data",
            f"{data.images:,} images, {data.gigabytes:,.0f} GB; {data.storage:.2g} GB/s of storage in the first epoch",
        ),
        _row("", f"{cache}, where a node has memory for it"),
        _row("decoding", f"{cores} cores a node; {keeps[data.decode_on_gpu]}"),
    ]


def as_dict(config: Config, plan: Plan) -> dict[str, Any]:
    """Plain values; what is infinite (no limit known) is None."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(part) for key, part in value.items()}
        return None if isinstance(value, float) and math.isinf(value) else value

    found: dict[str, Any] = plain(asdict(plan))
    found["step"]["total"] = plan.step.total
    return found | {"gpu_hours": plan.gpu_hours, "cost": plan.cost, "warnings": list(advice(config, plan))}


def draw(config: Config, name: str, plan: Plan, file: Path) -> None:
    """Draw the scaling curve to 2,048 GPUs. Raises UsageError."""
    from senet.plots import Line, lines, page

    wish, found, theirs = plan.wish, curve(config, plan.wish), _measured(config, plan.wish)
    each, whole = f"{plan.batch_per_gpu:.4g} images a GPU", f"{config.batch:,} images in all"
    paces = [
        Line(each, [(n, pace) for n, pace, _ in found["each"]]),
        Line(whole, [(n, pace) for n, pace, _ in found["global"]]),
        Line("no loss", [(n, n / plan.rate.each) for n, _, _ in found["each"]], dashed=True),
        Line("measured", [(row.gpus, row.rate) for row in theirs], dots=True),
    ]
    shares = [
        Line(each, [(n, 100 * share) for n, _, share in found["each"]]),
        Line(whole, [(n, 100 * share) for n, _, share in found["global"]]),
    ]
    title = f"{name}, {wish.gpu.upper()}, {config.precision}, {wish.stack}"
    note = (
        f"One GPU: {plan.rate.basis}, {plan.rate.fraction:.2f} of the roofline, ± {100 * plan.rate.spread:.0f} "
        "%. More GPUs: modelled."
    )
    with page(file, title, 2, note) as (left, right):
        lines(left, [line for line in paces if line.points], "GPUs", "images per second", 2, 10)
        lines(right, [line for line in shares if line.points], "GPUs", "percent of one GPU with large batches", 2)
        right.set_ylim(0, 103)


def _measured(config: Config, wish: Request) -> list[rates.Row]:
    ours, others = rates.rows()
    return [
        row for row in (*ours, *others) if rates.matches(row, config, wish.gpu.lower(), wish.stack) and row.gpus <= 2048
    ]


EXPLANATION = """\
How a plan is made. Each number's source is in brackets; what has none is assumed.

{traffic}

Roofline: a convolution takes the longer of its arithmetic and its traffic, the rest its traffic. A rate is the
roofline times a fraction: the net's own where it was measured on this GPU, else what the effects of net and GPU in
measured rates come to. The rates are in {file}; this project's own come first. By now all are others' [NVIDIA
DeepLearningExamples; timm; MLPerf Training v4.0], or, where nobody measured a stack, a goal of {goal}. NVIDIA's own
loop loses 16 to 18 % from one GPU to eight in AMP (3 to 5 % in TF32): probably the host's doing, and not in the
model.

Step: {fixed:.1f} ms + b x (time of an image) + exposed communication + jitter. The first number was fitted, with H100's
fraction, to MLPerf v4.0's systems of 8 to 3,584 GPUs, which it meets within 6 %.
{all_reduce}
{step}
Kernels: eager PyTorch starts one in about 6 us, so a step of few images takes at least that many times its operations.

Epochs: the first at {first:.2f} of the pace [MLPerf v4.0 logs]. Validation: a third of training's time an image.
Start: {start:.0f} s and {node} s a node [MLPerf v4.0 logs].

Data: {kb:.0f} kB an image. The order is global, so each of K nodes reads another Kth of the set in each epoch: after
n epochs its page cache lacks (1 - 1/K)^n of it. Decoding, images a CPU-second: {decoders} [measured on one core, 500
x 375 JPEGs].

Memory: inputs of convolutions and normalisations are kept, and what SE scales; 12 bytes a parameter (weight,
gradient, momentum) and half a copy; {reserved:.1f} GB for context and workspaces.

Failures: {failures:.1e} a GPU-hour [Llama 3: 419 in 54 days on 16,384 H100].
{young}
A checkpoint costs {stall:.0f} s at most, a restart {restart:.0f} s.
"""


def explain() -> str:
    """Formulas and sources."""
    return EXPLANATION.format(
        traffic=(traffic.__doc__ or "").strip(),
        file=rates.FILE.name,
        goal=rates.GOAL,
        fixed=1e3 * scale.FIXED,
        all_reduce=_text(scale.all_reduce.__doc__),
        step=_text(scale.step.__doc__),
        first=planner.FIRST_EPOCH,
        start=planner.START,
        node=planner.START_NODE,
        kb=Request(1).image_kb,
        decoders=", ".join(f"{name} {speed}" for name, speed in planner.DECODERS.items()),
        reserved=planner.RESERVED / 1e9,
        failures=planner.FAILURES,
        young=_text(planner.failures.__doc__),
        stall=planner.STALL,
        restart=planner.RESTART,
    ) + "\n".join(["GPUs (GB; TFLOP/s half, single; TB/s; link GB/s):", *map(_gpu, gpus.GPUS)])


def _gpu(name: str) -> str:
    gpu = gpus.GPUS[name]
    return f"  {name:8}{gpu.memory:5g}{gpu.half:6g}{gpu.single:5g}{gpu.bandwidth:6g}{gpu.link:5g}   {gpu.source}"


def _text(doc: str | None) -> str:
    return "\n".join(line.strip() for line in (doc or "").strip().splitlines())
