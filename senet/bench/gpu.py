"""Everything that a GPU can show, in one call of at most so many minutes.

Parts run one by one, the most telling first, each in a process of its own with a time limit: one that crashes, hangs or
is out of memory costs itself. What they measure is in OUT/rows.jsonl as soon as they have it; the same command goes on
with parts that are missing, then with those that failed. OUT/summary.md, summary.json and nets.png are written after
each part. One call of 9 minutes and one of 4 hold all parts but those that the last rows of `jobs` call extra. --tiny
does all of it with sizes for any machine, also one without a GPU, to see that it would work.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from senet import distributed
from senet.bench import parts, rows
from senet.bench.contestants import execution
from senet.bench.net import WAYS, WITHOUT_SE
from senet.bench.parts import CIFAR, SE50, STOPPED, Part, Setup
from senet.bench.rows import Row
from senet.errors import UsageError
from senet.plan import gpus, rates
from senet.plan.traffic import stack_of
from senet.run import provenance
from senet.system import table
from senet.system.files import write_text

RESNEXT50, RESNEXT101 = (f"configs/imagenet/se_resnext{depth}_32x4d.yaml" for depth in (50, 101))
SENET154, RESNET110 = "configs/imagenet/senet154.yaml", "configs/cifar10/se_resnet110.yaml"
EAGER, KERNELS = "channels_last", "channels_last+triton"
COMPILED, FASTEST = "channels_last+analytic+compile", "channels_last+triton+compile"
GRACE = 8.0  # seconds between the time at which a part is to end by itself and that at which it is ended
SUMMARY = 10.0  # seconds of a call that parts do not get


@dataclass(frozen=True)
class Job:
    """A part, the most seconds it may take, and how few make it worth beginning."""

    work: Part
    limit: float
    least: float = 25.0
    extra: bool = False  # for what time the two calls leave, or a third


def jobs() -> dict[str, Job]:
    """Return the parts in the order of what they tell: the goals, correctness, the loader, the loop, other nets."""
    small = (EAGER, "channels_last+graph", FASTEST, "channels_last+triton+compile+graph")
    return {
        "machine": Job(parts.machine, 25, 15),
        "net-se_resnet50": Job(parts.nets(SE50, (EAGER, KERNELS), ("nvidia", "timm"), 256, plain=True), 60),
        "compiled-se_resnet50": Job(
            parts.nets(SE50, (FASTEST, COMPILED), ("nvidia", "timm", "timm-compiled"), 256, plain=True), 200, 90
        ),
        "tests": Job(parts.tests, 65),
        "loader": Job(parts.loaders, 55),
        "loop": Job(parts.loop, 35),
        "net-senet154": Job(parts.nets(SENET154, (EAGER, "contiguous", FASTEST), ("timm",), 128), 90, 45),
        # The second call begins about here.
        "net-se_resnext101": Job(parts.nets(RESNEXT101, (EAGER, FASTEST), ("timm",), 256), 85, 45),
        "net-cifar": Job(parts.nets(CIFAR, small, ("nvidia",), 128), 40),
        "net-se_resnext50": Job(parts.nets(RESNEXT50, (EAGER, FASTEST), ("timm",), 256), 70, 45),
        "cifar": Job(parts.train_cifar, 25),
        "profile": Job(parts.profiles, 90, extra=True),
        "net-cifar-deep": Job(parts.nets(RESNET110, (EAGER, FASTEST), ("nvidia",), 1024), 90, extra=True),
    }


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where results go, and are looked for")
    parser.add_argument("--minutes", type=float, default=9.0, metavar="M", help="of this call (default 9)")
    names = list(jobs())
    parser.add_argument("--parts", nargs="+", choices=names, metavar="PART", help=f"only these: {', '.join(names)}")
    data = "CIFAR-10's extracted archive, to train on (default: noise)"
    parser.add_argument("--data", type=Path, metavar="DIR", help=data)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal with tiny sizes; its numbers mean nothing")
    parser.add_argument("--part", metavar="PART", help=argparse.SUPPRESS)
    parser.add_argument("--left", type=float, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> Iterator[Row]:
    """Run what is missing and yield all rows that are there then. Raises UsageError if there is no GPU, or if OUT holds
    results of another machine.
    """
    world = distributed.start(args.device)
    if world.device.type == "cpu" and not args.tiny:
        raise UsageError("gpu: no CUDA device is visible; --tiny tries the parts on this machine")
    if args.part:
        setup = Setup(world, args.out, time.monotonic() + args.left, args.tiny, args.data)
        work = jobs()[args.part].work(setup)
        rows.append(args.out / "rows.jsonl", (replace(row, part=args.part) for row in work))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    states = _states(args.out, world.device, args.tiny)
    deadline = time.monotonic() + 60 * args.minutes - SUMMARY
    wanted = {name: job for name, job in jobs().items() if not args.parts or name in args.parts}
    # What failed once comes after what was never tried, and what is extra last.
    for name in sorted(wanted, key=lambda name: (wanted[name].extra, name in states)):
        left = deadline - time.monotonic()
        if states.get(name, {}).get("status") == "done":
            print(f"{name}: there already", flush=True)
        elif left < (5 if args.tiny else wanted[name].least):
            print(f"{name}: no time left; the same command goes on", flush=True)
        else:
            limit = 300.0 if args.tiny else wanted[name].limit
            states[name] = state = _run(name, args, min(limit, left))
            said = f"{name}: {state['status']} after {state['seconds']:.0f} s"
            print(f"{said}: {state['error']}" if state["error"] else said, flush=True)
            _save(args.out, world.device, args.tiny, states)
    yield from rows.read(args.out / "rows.jsonl")


def _run(name: str, args: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Start a part, wait for it, end it when its time is over; return what became of it."""
    cache = Path(tempfile.gettempdir()) / f"senet-bench-{os.getuid()}"  # what is compiled for one part serves the next
    caches = {"TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"), "TRITON_CACHE_DIR": str(cache / "triton")}
    command = [sys.executable, "-m", "launch.bench", "gpu", "--out", str(args.out), "--part", name]
    command += ["--left", str(max(seconds - GRACE, 1.0)), "--device", args.device, *(["--tiny"] if args.tiny else [])]
    command += ["--data", str(args.data)] if args.data else []
    began, status, error = time.monotonic(), "done", ""
    with (args.out / f"{name}.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | caches, start_new_session=True)
        try:
            if code := process.wait(seconds):
                status, error = ("begun", "time was over") if code == STOPPED else ("failed", f"exit code {code}")
        except subprocess.TimeoutExpired:
            status, error = "failed", f"ended after {seconds:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and whatever it started
            process.wait()
    if status == "failed":
        lines = [line.strip() for line in (args.out / f"{name}.log").read_text(errors="replace").splitlines()]
        error += f", {lines[-1][:200]}" if (lines := [line for line in lines if line]) else ""
    taken = time.monotonic() - began
    return {"status": status, "error": error, "seconds": taken, "commit": provenance.code()[0][:12] or "unknown"}


def _states(out: Path, device: torch.device, tiny: bool) -> dict[str, Any]:
    """Return what became of the parts in OUT. Raises UsageError for those of a rehearsal, or of another GPU."""
    file = out / "parts.json"
    if not file.exists():
        return {}
    there: dict[str, Any] = json.loads(file.read_text())
    if (there["device"], there["tiny"]) != (_name(device), tiny):
        of = f"{there['device']}{', tiny' * there['tiny']}"
        raise UsageError(f"--out {out}: holds results of {of}; use another folder")
    return there["parts"]


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def _save(out: Path, device: torch.device, tiny: bool, states: dict[str, Any]) -> None:
    """Write what there is by now, so that a call which is cut short has it too."""
    write_text(out / "parts.json", json.dumps({"device": _name(device), "tiny": tiny, "parts": states}, indent=1))
    found = rows.read(out / "rows.jsonl")
    nets = [row for row in found if row.part.startswith(("net-", "compiled-"))]
    reached = [] if tiny else goals(nets)
    measured = [] if tiny else planner(nets, [row for row in found if row.part == "machine"])
    facts = {"goals": reached, "measured": measured, "parts": states, "rows": [asdict(row) for row in found]}
    write_text(out / "summary.json", json.dumps(facts, indent=1))
    write_text(out / "summary.md", page(found, states, reached, measured, tiny))
    large = [row for row in nets if "imagenet" in row.what and row.value]
    if large:
        large.sort(key=lambda row: (row.what, row.value.median if row.value else 0))  # the bars of a net side by side
        best = {(row.what, row.how): row for row in large}
        note = f"{_name(device)}, torch {torch.__version__}, batch {large[0].facts['batch']}; mark: roofline"
        rows.draw(list(best.values()), "Training images per second, noise as data", out / "nets.png", note)


# -------------------------------------------------------------------------------------------------------------- summary

# What a row of SE-ResNet-50's fastest execution has to reach: a fact, the least value, in words.
GOALS = (
    ("x without SE", 0.97, "SE-ResNet-50 of our ResNet-50's speed, computed alike"),
    ("of roofline", 0.75, "SE-ResNet-50 of the roofline of its bytes moved, with the fused SE tail compiled"),
    ("x timm", 1.4, "x timm as most run it (AMP, channels_last, eager)"),
    ("x timm compiled", 1.1, "x timm compiled"),
    ("x NVIDIA's loop", 1.8, "x the NVIDIA-style loop with our net"),
)


def goals(nets: Sequence[Row]) -> list[dict[str, Any]]:
    """Return each goal with what the fastest execution of SE-ResNet-50 came to."""
    found = [row for row in nets if row.what == "imagenet/se_resnet50:v1.5" and row.value]
    ours = [row for row in found if row.how not in WAYS.values()]
    best = max(ours, key=lambda row: row.value.median if row.value else 0, default=Row(""))
    values = [(best.number(fact), str(best.facts.get(fact)), least, goal) for fact, least, goal in GOALS]
    return [
        {"goal": goal, "least": least, "value": value, "shown": None if value is None else shown,
         "how": best.how or None, "reached": None if value is None else value >= least}
        for value, shown, least, goal in values
    ]  # fmt: skip


def planner(nets: Sequence[Row], machine: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the fastest of each net and stack as rows for senet/plan/measured.yaml, if that knows the GPU."""
    gpu = gpus.called(machine[0].what) if machine else None
    fastest: dict[tuple[str, str], rates.Row] = {}
    for row in nets:
        if gpu is None or not row.value or row.how in WAYS.values() or row.what.endswith(WITHOUT_SE):
            continue
        if (stack := stack_of(execution(row.how))) is None:
            continue
        path, _, variant = row.what.partition(":")
        net = f"{path}.yaml{':' * bool(variant)}{variant}"
        source = f"launch.bench gpu, commit {machine[0].facts['commit']}"
        rate, batch, precision = round(row.value.median, 1), int(row.number("batch") or 0), row.facts["precision"]
        known = rates.Row(source, net, gpu, precision, stack, batch, rate)  # type: ignore[arg-type]
        if (net, stack) not in fastest or rate > fastest[net, stack].rate:
            fastest[net, stack] = known
    return [asdict(row) for row in fastest.values()]


def page(
    found: Sequence[Row], states: dict[str, Any], reached: Sequence[Any], measured: Sequence[Any], tiny: bool
) -> str:
    """Write summary.md."""
    pages = ["# GPU bench" + (": a rehearsal with tiny sizes, whose numbers mean nothing" if tiny else "")]
    pages.append("Medians of interleaved rounds (range); ratios come from pairs of one round.")
    if reached:
        verdict = {True: "reached", False: "NOT reached", None: "not measured"}
        cells = [(g["goal"], f">= {g['least']}", g["shown"], g["how"], verdict[g["reached"]]) for g in reached]
        pages += ["## Goals", table.markdown(("", "goal", "measured", "execution", ""), cells)]
    for name in jobs():
        if of_part := [row for row in found if row.part == name]:
            pages += [f"## {name}", rows.show(of_part, markdown=True)]
    if measured:
        lines = "\n".join(f"- {json.dumps(row)}" for row in measured)
        pages += ["## Rows for launch.plan", f"`ours` in senet/plan/measured.yaml:\n\n```yaml\nours:\n{lines}\n```"]
    failures = [f"{name}: {state['error']}." for name, state in states.items() if state["status"] != "done"]
    missing = [name for name in jobs() if name not in states]
    failures += [f"Not tried yet: {', '.join(missing)}."] if missing else []
    if failures:
        pages += ["## Not measured", *failures]
    return "\n\n".join(pages) + "\n"


def show(found: Sequence[Row]) -> str:
    """Say how much there is; the tables are in summary.md."""
    return f"{len(found)} rows; see summary.md"
