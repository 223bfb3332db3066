"""A plan on a page, as JSON, and as a picture."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from senet.plan import gpus, rates, traffic
from senet.plan.advice import advice
from senet.plan.planner import Plan
from senet.system.table import text

EXPLANATION = Path(__file__).parent / "README.md"


def page(name: str, plan: Plan, errors: str) -> str:
    """Lay a plan out for a terminal, the `errors` to expect and warnings last."""
    request = plan.request
    where = f"{request.gpus:,} {request.gpu.upper()} in {plan.nodes:,} node{'s' * (plan.nodes > 1)}"
    blocks = [text(("", ""), list(section)) for section in (_net(plan), _pace(plan), _needs(plan))]
    blocks[0] = f"{name} on {where}, {plan.config.precision}, {request.stack}\n{blocks[0]}"
    warnings = "\n".join(f"warning: {line}" for line in advice(plan)) or "no warnings"
    return "\n\n".join([*blocks, errors, warnings])


Rows = Iterator[tuple[str, str]]


def _net(plan: Plan) -> Rows:
    rate, seen = plan.rate, plan.traffic
    size = f"{seen.parameters / 1e6:.1f} M parameters, {seen.macs / 1e9:.2f} G multiply-adds"
    yield f"{'net':13}", f"{size}, {plan.megabytes:.0f} MB moved an image"
    doubt = f"± {100 * rate.doubt:.0f} %; {rate.basis}: {rate.said}"
    yield "one GPU", f"{1 / rate.each:,.0f} images/s with large batches, {doubt}"


def _pace(plan: Plan) -> Rows:
    step, request, config = plan.step, plan.request, plan.config
    each = f"{plan.images_per_second / request.gpus:,.0f} a GPU"
    between = f"between {plan.low:,.0f} and {plan.high:,.0f}"
    yield f"{'images/s':13}", f"{plan.images_per_second:,.0f} in all, {each}, {between}; bound by the {plan.bound}"
    images = f"{config.batch:,} images, {plan.batch_per_gpu:.4g} a GPU; efficiency {100 * plan.efficiency:.0f} %"
    yield "step", f"{1e3 * step.total:.1f} ms for {images}"
    parts = {"compute": step.compute, "fixed": step.fixed, "communication": step.exposed, "slowest rank": step.jitter}
    for name, seconds in parts.items():
        hidden = step.all_reduce - step.exposed if name == "communication" else 0.0
        more = f"   ({1e3 * hidden:.2f} ms more are hidden)" if hidden else ""
        yield "", f"{name:14}{1e3 * seconds:8.2f} ms {100 * seconds / step.total:4.0f} %{more}"
    parts_of = f"training {_time(plan.training_hours)}, validation {_time(plan.validation_hours)}"
    least, most = (_time(hours) for hours in plan.hours_range)
    epochs = f"{config.epochs} epochs of {plan.steps_per_epoch:,} steps ({parts_of})"
    yield "time", f"{_time(plan.hours)}, between {least} and {most}, for {epochs}"
    money = " (--price $ makes it money)"
    if plan.cost is not None and request.price is not None:
        low, high = (hours * request.gpus * request.price for hours in plan.hours_range)
        money = f", ${plan.cost:,.2f} at ${request.price:g} each, between ${low:,.2f} and ${high:,.2f}"
    yield "cost", f"{plan.gpu_hours:,.4g} GPU-hours{money}"


def _needs(plan: Plan) -> Rows:
    lost = plan.failures
    if not plan.cores:
        yield f"{'data':13}", f"{plan.images:,} images, held on each device"
    else:
        first = f"{plan.storage_needed:.2g} GB/s of storage in the first epoch"
        yield f"{'data':13}", f"{plan.images:,} images, {plan.gigabytes:,.0f} GB; {first}"
        cache = "the page cache holds it after the first epoch"
        if plan.nodes > 1:
            cache = f"page caches hold nine tenths of it after {plan.cached_after} epochs"
        yield "", f"{cache}, if a node has memory for it"
        cores = ", ".join(f"{math.ceil(number):,} ({name})" for name, number in plan.cores.items())
        keeps = {None: "no decoder on this GPU is known to keep up", True: "or the GPU's own decoder, which keeps up"}
        keeps[False] = "the GPU's own decoder does not keep up"
        yield "decoding", f"{cores} cores a node; {keeps[plan.decode_on_gpu]}"
    needed = f"{plan.network_needed:.2g} GB/s of a node's {plan.network:g} for gradients"
    reduced = f"all-reduce {1e3 * plan.step.all_reduce:.2f} ms"
    yield "network", "within one node" if plan.nodes == 1 else f"{needed}; {reduced}"
    most = f"up to {plan.largest_batch:,} images at once"
    yield "memory", f"about {plan.memory_gb:.1f} of {plan.gpu.memory:g} GB a GPU; {most}"
    share = f"they and checkpoints cost {100 * lost.loss:.1f} % of it"
    yield "failures", f"one in {lost.mtbf_hours:,.0f} h, {lost.expected:.2g} in this run; {share}"
    minutes = 60 * plan.training_hours / max(plan.config.epochs, 1)
    enough = "which is enough" if minutes <= lost.interval_minutes else "so set --save-minutes"
    saves = f"an epoch takes {minutes:.1f} min and saves at its end, {enough}"
    yield "checkpoints", f"every {lost.interval_minutes:.0f} min (Young); {saves}"


def _time(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:.1f} days"
    return f"{hours:.1f} h" if hours >= 2 else f"{60 * hours:.0f} min" if hours >= 1 / 30 else f"{3600 * hours:.0f} s"


def as_dict(plan: Plan) -> dict[str, Any]:
    """Return a plan as plain values; what is infinite (no limit known) is None."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(part) for key, part in value.items()}
        if is_dataclass(value):
            return plain(vars(value))
        return None if isinstance(value, float) and math.isinf(value) else value

    found = {name: plain(value) for name, value in vars(plan).items() if name not in ("config", "traffic")}
    found["step"]["total"] = plan.step.total
    net = {"parameters": plan.traffic.parameters, "gmacs": plan.traffic.macs / 1e9}
    return {"batch": plan.config.batch, "epochs": plan.config.epochs, **net, **found, "warnings": list(advice(plan))}


def draw(name: str, plan: Plan, file: Path) -> None:
    """Draw the scaling curve to 2,048 GPUs. Raises UsageError."""
    from senet import plots
    from senet.plots import Line

    request, config, found = plan.request, plan.config, plan.curve()
    known = [row for part in rates.rows() for row in part if row.gpus <= 2048]
    same = [row for row in known if rates.matches(row, config, request.gpu.lower(), request.stack)]
    names = {"each": f"{plan.batch_per_gpu:.4g} images a GPU", "global": f"{config.batch:,} images in all"}
    paces = [Line(label, [(n, pace) for n, pace, _ in found[key]]) for key, label in names.items()]
    paces.append(Line("no loss", [(n, n / plan.rate.each) for n, _, _ in found["each"]], dashed=True))
    paces.append(Line("measured", [(row.gpus, row.rate) for row in same], dots=True))
    shares = [Line(label, [(n, 100 * share) for n, _, share in found[key]]) for key, label in names.items()]
    title = f"{name}, {request.gpu.upper()}, {config.precision}, {request.stack}"
    one = f"One GPU: {plan.rate.basis}, ± {100 * plan.rate.doubt:.0f} %: {plan.rate.said}"
    with plots.page(file, title, 2, f"{one}. More GPUs: modelled.") as (left, right):
        plots.lines(left, [line for line in paces if line.points], "GPUs", "images per second", 2, 10)
        plots.lines(right, [line for line in shares if line.points], "GPUs", "% of one GPU with large batches", 2)
        right.set_ylim(0, 103)


def explain() -> str:
    """Return formulas and sources: what this folder's README says of how a plan is made, the passes and the GPUs."""
    how = EXPLANATION.read_text().partition("## How a plan is made\n")[2].strip()
    passes = text(("passes", *traffic.STACKS), [(kind, *counts) for kind, counts in traffic.PASSES.items()])
    header = ("GPU", "GB", "TFLOP/s half", "tf32", "fp32", "TB/s", "link GB/s", "")
    cells = [(n, g.memory, g.half, g.tf32, g.fp32, g.bandwidth, g.link, g.source) for n, g in gpus.GPUS.items()]
    return "\n\n".join([how, (traffic.__doc__ or "").strip(), passes, text(header, cells)])
