"""What the parts of the GPU bench found, on one page: summary.json, summary.md and charts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from senet.bench import net, step
from senet.bench.contestants import execution
from senet.plan import gpus
from senet.plan.rates import Row
from senet.plan.traffic import Device, stack_of
from senet.system import table
from senet.system.timing import Spread

Found = dict[str, dict[str, Any]]  # state of each part that was tried


@dataclass(frozen=True)
class Goal:
    what: str
    least: float
    key: str  # in the row of SE-ResNet-50's fastest execution


GOALS = (
    Goal("SE-ResNet-50 of our ResNet-50's speed, computed alike", 0.97, "x_plain"),
    Goal("SE-ResNet-50 of the analytic roofline", 0.75, "of_analytic"),
    Goal("x timm as most run it (AMP, channels_last, eager)", 1.4, "x_timm"),
    Goal("x timm compiled", 1.1, "x_timm_compiled"),
    Goal("x the NVIDIA-style loop with our net", 1.8, "x_nvidia"),
)
SE50 = "se_resnet50:v1.5"


def write(out: Path, names: Sequence[str]) -> dict[str, Any]:
    """Write what is there of the parts `names` in `out`, and return it."""
    found: Found = {}
    for name in names:
        file = out / f"{name}.json"
        if file.exists():
            found[name] = json.loads(file.read_text())
    done = {name: state["result"] for name, state in found.items() if state["result"] is not None}
    rows = [row for name, result in done.items() if name.startswith(("net-", "compiled-")) for row in result["rows"]]
    tiny = any(state["tiny"] for state in found.values())
    reached = goals([] if tiny else rows)  # a rehearsal reaches nothing
    statuses = {name: found[name]["status"] if name in found else "not tried" for name in names}
    result: dict[str, Any] = {
        "parts": statuses,
        "goals": reached,
        "measured": planner([] if tiny else rows, done.get("machine")),
        "machine": done.get("machine"),
    }
    pages = [
        _head(done.get("machine"), tiny),
        _goals(reached),
        *_pages(done),
        _measured(result["measured"]),
        _failures(found, names),
    ]
    (out / "summary.json").write_text(json.dumps(result | {"tiny": tiny, "rows": rows}, indent=1))
    (out / "summary.md").write_text("\n\n".join(page for page in pages if page) + "\n")
    _draw(out, done, rows)
    return result


def goals(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each goal with what the fastest execution of SE-ResNet-50 came to; of a ratio, the median of its rounds."""
    ours = [row for row in rows if row["net"] == SE50 and row["kind"] == "net" and row.get("images_per_second")]
    best = max(ours, key=lambda row: row["images_per_second"]["median"], default={})
    reached = []
    for goal in GOALS:
        value = best.get(goal.key)
        spread = (
            None if value is None else Spread(**value) if isinstance(value, dict) else Spread(value, value, value, 1)
        )
        reached.append(
            {
                "goal": goal.what,
                "least": goal.least,
                "how": best.get("how"),
                "value": spread.median if spread else None,
                "shown": str(spread) if spread else "not measured",
                "reached": spread.median >= goal.least if spread else None,
            }
        )
    return reached


def planner(rows: Sequence[dict[str, Any]], machine: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The fastest of each net and stack, as rows for senet/plan/measured.yaml; none where launch.plan does not know the
    GPU.
    """
    gpu = gpus.called((machine or {}).get("gpu", ""))
    fastest: dict[tuple[str, str], Row] = {}
    for row in rows:
        if row["kind"] != "net" or not row.get("images_per_second"):
            continue
        stack = stack_of(execution(row["how"]))
        if machine is None or gpu is None or stack is None:
            continue
        source = f"senet.bench gpu, commit {machine['commit'][:12] or 'unknown'}"
        rate = round(row["images_per_second"]["median"], 1)
        known = Row(source, row["config"].removeprefix("configs/"), gpu, row["precision"], stack, row["batch"], rate)
        if (before := fastest.get((known.net, stack))) is None or rate > before.rate:
            fastest[known.net, stack] = known
    return [asdict(row) for row in fastest.values()]


# ----------------------------------------------------------------------------------------------------------------- text


def _head(machine: dict[str, Any] | None, tiny: bool) -> str:
    lines = ["# GPU bench" + (": a rehearsal with tiny sizes, whose numbers mean nothing" if tiny else "")]
    if machine:
        best = machine["best"]
        versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        lines.append(
            f"{best['name']}: {best['bandwidth'] / 1e12:.3g} TB/s, {best['matmul'] / 1e12:.4g} TFLOP/s "
            f"({best['source']}); {versions}."
        )
        lines.append(
            f"Commit {machine['commit'][:12] or 'unknown'}. Medians of interleaved rounds (range); ratios "
            "from pairs of one round."
        )
    return "\n\n".join(lines)


def _goals(reached: Sequence[dict[str, Any]]) -> str:
    verdict = {True: "reached", False: "NOT reached", None: "-"}
    rows = [
        (goal["goal"], f">= {goal['least']}", goal["shown"], goal["how"], verdict[goal["reached"]]) for goal in reached
    ]
    return "## Goals\n\n" + table.markdown(("", "goal", "measured", "computed", ""), rows)


def _pages(done: dict[str, Any]) -> list[str]:
    """The tables of what is there, in order."""
    pages = []
    for name, result in done.items():
        write_page: Callable[[dict[str, Any]], str] | None = next(
            (page for prefix, page in PAGES.items() if name.startswith(prefix)), None
        )
        if write_page is not None:
            pages.append(f"## {name}\n\n{write_page(result)}")
    return pages


def _nets(result: dict[str, Any]) -> str:
    rows = result["rows"]
    note = f"{rows[0]['precision']}, batch {rows[0]['batch']}, {rows[0]['crop']} px, synthetic images on the device."
    memory = [f"{row['kind']} {row['how']} {row['memory'] / 2**30:.1f}" for row in rows if row.get("memory")]
    failures = [f"{row['kind']} {row['how']}: {row['failure']}." for row in rows if row["failure"]]
    lines = [
        table.markdown(net.HEADER, net.cells(rows)),
        note,
        *([f"GiB a step: {', '.join(memory)}."] if memory else []),
        *failures,
    ]
    return "\n\n".join(lines)


def _numerics(result: dict[str, Any]) -> str:
    worst: dict[tuple[str, str, float], dict[str, Any]] = {}
    for row in result["rows"]:
        key = (row["tail"], row["precision"], row["shift"])
        entry = worst.setdefault(
            key,
            {
                "cases": 0,
                "passed": 0,
                "error": dict.fromkeys(row["plain"], 0.0),
                "plain": dict.fromkeys(row["plain"], 0.0),
            },
        )
        entry["cases"] += 1
        entry["passed"] += row["passed"]
        for which in ("error", "plain"):
            for name, value in (row[which] or {}).items():
                entry[which][name] = max(entry[which][name], value)
    lines = []
    for (tail, precision, shift), entry in worst.items():
        errors = [f"{entry['error'][name]:.1e} / {entry['plain'][name]:.1e}" for name in ("out", "input", "parameters")]
        lines.append((tail, precision, f"{shift:.0f}", *errors, f"{entry['passed']} of {entry['cases']}"))
    header = (
        "tail",
        "precision",
        "mean, std",
        "output / plain",
        "input gradient / plain",
        "parameter gradients / plain",
        "passed",
    )
    failures = sorted({row["failure"] for row in result["rows"] if row["failure"]})
    return "\n\n".join(
        [
            table.markdown(header, lines),
            "Greatest errors against float64, beside those of the plain block in the same precision.",
            *failures,
        ]
    )


def _sync(result: dict[str, Any]) -> str:
    lines = [(row["how"], row["precision"], row["failure"] or "no wait") for row in result["rows"]]
    note = "" if result["meaningful"] else "\n\nOn a CPU there is no device to wait for."
    return table.markdown(("computed", "precision", "ten steps with waiting made an error"), lines) + note


def _graph(result: dict[str, Any]) -> str:
    lines = []
    for row in result["rows"]:
        speed, ratio = (str(Spread(**row[key])) if row[key] else None for key in ("images_per_second", "x_eager"))
        lines.append((row["how"], speed or f"not measured: {row['failure']}", ratio))
    return table.markdown((f"{result['net']}, batch {result['rows'][0]['batch']}", "images/s", "x eager"), lines)


def _loop(result: dict[str, Any]) -> str:
    lines = [
        [f"{row['how']}, {cells[0]}", *cells[1:]]
        for row in result["rows"]
        if not row["failure"]
        for cells in step.cells(row)
    ]
    note = f"se_resnet20, {result['precision']}, batch {result['batch']}, both loops fed by a loader."
    failures = [f"{row['how']}: {row['failure']}" for row in result["rows"] if row["failure"]]
    return "\n\n".join([table.markdown(step.HEADER, lines), note, *failures])


def _profile(result: dict[str, Any]) -> str:
    pages = []
    for how, found in result["executions"].items():
        if found["failure"]:
            pages.append(f"{how}: {found['failure']}")
            continue
        total = found["busy_ms"] or 1.0
        kinds = [(kind, f"{ms:.2f}", f"{100 * ms / total:.0f} %") for kind, ms in found["kinds"].items()]
        top = [(row["kernel"][:90], f"{row['calls']:.0f}", f"{row['ms']:.2f}") for row in found["top"][:12]]
        head = (
            f"{how}: {found['ms_a_step']:.1f} ms a step, {found['busy_ms']:.1f} ms of kernels, batch {result['batch']}"
        )
        pages += [head, table.markdown(("kind", "ms", "share"), kinds), table.markdown(("kernel", "calls", "ms"), top)]
    return "\n\n".join(pages)


def _grouped(result: dict[str, Any]) -> str:
    lines: dict[tuple[str, str], list[object]] = {}
    for row in result["rows"]:
        cell = f"{row['ms']:.3f} ({row['of_bandwidth']:.2f})" if row["ms"] else row["failure"]
        lines.setdefault((row["conv"], row["layout"]), []).append(cell)
    header = ("3x3, grouped", "layout", "forward", "input gradient", "weight gradient")
    note = (
        f"ms (share of the bandwidth that its input and output need), {result['precision']}, batch {result['batch']}."
    )
    return table.markdown(header, [(*key, *cells) for key, cells in lines.items()]) + "\n\n" + note


def _compiles(result: dict[str, Any]) -> str:
    lines = [(row["how"], f"{row['first_seconds']:.1f}", row["failure"] or "works") for row in result["rows"]]
    return table.markdown(("three blocks, computed", "s to the first step", ""), lines)


def _loaders(result: dict[str, Any]) -> str:
    lines = []
    for row in result["rows"]:
        speeds = [str(Spread(**row[key])) if row.get(key) else None for key in ("loader", "net", "together")]
        lines.append((row.get("pixels", row["backend"]), *speeds, row["failure"] or ""))
    note = (
        f"{result['net']}, batch {result['batch']}, {result['crop']} px, {result['images']} drawn JPEGs "
        "of 500 x 375; images/s."
    )
    return table.markdown(("loader", "alone", "net alone", "net fed by it", ""), lines) + "\n\n" + note


def _cifar(result: dict[str, Any]) -> str:
    epochs = result["epochs"]
    shown = [row for number, row in enumerate(epochs) if number % max(1, len(epochs) // 12) == 0 or row is epochs[-1]]
    lines = [(row["epoch"], row["train_top1_error"], row["top1_error"], f"{row['seconds']:.0f}") for row in shown]
    note = (
        f"{result['config']}, {result['data']}: {result['images_per_second']} images/s; "
        f"{result['unfinished'] or 'finished'}."
    )
    return (
        table.markdown(("epoch", "training error", "test top-1 error", "seconds since the last start"), lines)
        + "\n\n"
        + note
    )


PAGES: dict[str, Callable[[dict[str, Any]], str]] = {
    "net-": _nets,
    "compiled-": _nets,
    "numerics": _numerics,
    "sync": _sync,
    "graph": _graph,
    "loop": _loop,
    "profile": _profile,
    "grouped": _grouped,
    "compiles": _compiles,
    "loader": _loaders,
    "cifar": _cifar,
}


def _measured(rows: Sequence[dict[str, Any]]) -> str:
    lines = "\n".join(f"- {json.dumps(row)}" for row in rows)
    return (
        f"## Rows for launch.plan: `ours` in senet/plan/measured.yaml\n\n```yaml\nours:\n{lines}\n```" if rows else ""
    )


def _failures(found: Found, names: Sequence[str]) -> str:
    pages = []
    for name, state in found.items():
        if state["status"] == "failed":
            log = "\n".join(state["log"].splitlines()[-15:])
            pages.append(f"{name}: {state['error']}\n\n```\n{log}\n```")
    missing = [name for name in names if name not in found]
    if missing:
        pages.append(f"Not tried yet: {', '.join(missing)}.")
    return "## Not measured\n\n" + "\n\n".join(pages) if pages else ""


# --------------------------------------------------------------------------------------------------------------- charts


def _draw(out: Path, done: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    from senet import plots

    if rows and "machine" in done:
        imagenet = [row for row in rows if "resnet110" not in row["net"]]
        net.draw(_distinct(imagenet), Device(**done["machine"]["best"]), out / "nets.png")
    if "profile" in done:
        drawn = [
            plots.Bar(kind, ms, how)
            for kind in _kinds(done["profile"])
            for how, found in done["profile"]["executions"].items()
            if (ms := (found.get("kinds") or {}).get(kind)) is not None
        ]
        if drawn:
            with plots.page(out / "profile.png", "Where a step of SE-ResNet-50 goes") as (axes,):
                plots.bars(axes, drawn, "ms of kernels a step")
    if "cifar" in done and len(done["cifar"]["epochs"]) > 1:
        lines = [
            plots.Line(label, [(row["epoch"], row[key]) for row in done["cifar"]["epochs"] if row[key] is not None])
            for label, key in (("training", "train_top1_error"), ("test", "top1_error"))
        ]
        with plots.page(out / "cifar.png", f"SE-ResNet-20, {done['cifar']['data']}") as (axes,):
            plots.lines(axes, lines, "epoch", "top-1 error, %")
            axes.set_ylim(bottom=0)


def _kinds(result: dict[str, Any]) -> list[str]:
    """Of all executions, the costliest first."""
    most: dict[str, float] = {}
    for found in result["executions"].values():
        for kind, ms in (found.get("kinds") or {}).items():
            most[kind] = max(most.get(kind, 0.0), ms)
    return sorted(most, key=lambda kind: -most[kind])[:7]


def _distinct(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Peers are measured in several parts: of each contestant the fastest."""
    best: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in rows:
        key = (row["net"], row["kind"], row["how"])
        speed = (row.get("images_per_second") or {}).get("median", 0.0)
        if key not in best or speed > (best[key].get("images_per_second") or {}).get("median", 0.0):
            best[key] = row
    return list(best.values())
