"""What runs came to, in tables: one row a recipe with mean and spread over its seeds, and the facts of each run."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import yaml

from senet.config import to_dict
from senet.report.facts import RunFacts, groups
from senet.report.paper import differences, quoted
from senet.track.terminal import duration
from senet.train.predictions import interval

Cell = str | int | None


def recipes(runs: Sequence[RunFacts]) -> list[tuple[str, list[RunFacts]]]:
    """Return the runs of each recipe, and its name: those of one name are told apart by the settings in which they
    differ from the first.
    """
    found = []
    first_of: dict[str, RunFacts] = {}  # of one name
    for group in groups(list(runs)):
        like = first_of.setdefault(group[0].name, group[0])
        changed = ", ".join(differences(like.config, group[0].config))
        found.append((f"{group[0].name} {changed}".strip(), group))
    return found


def summary(runs: Sequence[RunFacts]) -> tuple[list[str], list[list[Cell]]]:
    """Return header and rows of a table: the errors of the last validations of each recipe, as mean ± standard
    deviation over its runs, or of one run with the 95 % interval that the number of images leaves; the paper's beside
    them.
    """
    rows: list[dict[str, Cell]] = []
    for name, group in recipes(runs):
        first, paper = group[0], quoted(group[0].config)
        done = [run.last for run in group if run.last]
        epochs = sorted({int(record["epoch"]) for record in done}) or [0]
        row: dict[str, Cell] = {"run": name, "n": len(group)}
        trained = "-".join(dict.fromkeys((str(epochs[0]), str(epochs[-1]))))
        row["epochs"] = trained + f" of {first.config.epochs}" * (epochs != [first.config.epochs])
        for top in ("top1", "top5"):
            row[f"{top[:3]}-{top[3]} error %"] = _spread(done, f"{top}_error")
        best = min((run.best["top1_error"] for run in group if run.best), default=None)
        row["best top-1 %"] = None if best is None else f"{best:.2f}"
        row["paper: top-1"] = paper and f"{paper.top1_error:g}"
        row["top-5"] = f"{paper.top5_error:g}" if paper and paper.top5_error else None
        row["hours"] = f"{statistics.mean(run.hours for run in group):.2g}"
        row["on"] = ", ".join(dict.fromkeys(_machine(run.starts[-1]) for run in group if run.starts))
        row["commit"] = ", ".join(dict.fromkeys(str(run.starts[-1].get("commit"))[:9] for run in group if run.starts))
        rows.append(row)
    used = [name for name in rows[0] if any(row[name] for row in rows)]
    return used, [[row[name] for name in used] for row in rows]


def difference(runs: Sequence[RunFacts]) -> str:
    """Say by how much the top-1 errors of two recipes differ, with the 95 % interval of Welch's t; empty unless `runs`
    are several of each of two.
    """
    found = [_values([run.last for run in group if run.last], "top1_error") for group in groups(list(runs))]
    if len(found) != 2 or min(map(len, found)) < 2:
        return ""
    parts = [statistics.variance(errors) / len(errors) for errors in found]
    if not sum(parts):
        return ""  # runs of the same seed, which tell nothing of the spread
    gap = statistics.mean(found[1]) - statistics.mean(found[0])
    freedom = sum(parts) ** 2 / sum(part**2 / (len(errors) - 1) for part, errors in zip(parts, found, strict=True))
    half = _student(freedom) * math.sqrt(sum(parts))
    sides = f"{gap - half:+.2f} to {gap + half:+.2f}"
    return f"Difference in top-1 error, second less first: {gap:+.2f} points (95 %: {sides})"


def _student(freedom: float) -> float:
    """Return how many standard errors either side of a mean hold 95 % of Student's t distribution."""
    x = np.linspace(0, 200, 2_000_001)
    density = (1 + x**2 / freedom) ** (-(freedom + 1) / 2)
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
    share = np.cumsum(density) * (x[1] * scale) - density * (x[1] * scale / 2)  # from 0 to x
    return float(x[np.searchsorted(share, 0.475)])


def _values(records: Sequence[Any], key: str) -> list[float]:
    return [float(record[key]) for record in records if record.get(key) is not None]


def _spread(records: Sequence[Any], key: str) -> str | None:
    values = _values(records, key)
    if not values:
        return None
    if len(values) > 1:
        return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"
    low, high = interval(values[0], int(records[0]["images"]))
    return f"{values[0]:.2f} ({low:.2f} to {high:.2f})"


def _machine(start: Mapping[str, Any]) -> str:
    kind = start.get("gpu") or f"CPU with {start.get('cores')} cores"
    return f"{ranks} x {kind}" if (ranks := start.get("ranks", 1)) > 1 else str(kind)


def card(run: RunFacts) -> list[list[Cell]]:
    """Return the facts of a run, a row each."""
    facts = run.starts[-1] if run.starts else {}
    best, last = run.best, run.last
    speed = [record["images_per_second"] for record in run.train if record.get("images_per_second")]
    ranks = f"{facts['ranks']} ranks" if facts.get("ranks", 1) > 1 else ""
    machine = [ranks, *(str(facts.get(key) or "") for key in ("gpu", "host", "platform"))]
    rows: dict[str, Any] = {
        "folder": str(run.folder),
        "state": run.state,
        "last validation": last and f"epoch {last['epoch']}: {_errors(last)}",
        "best validation": best and f"epoch {best['epoch']}: {_errors(best)}",
        "took": run.hours and duration(3600 * run.hours) + f", in {len(run.starts)} starts" * (len(run.starts) > 1),
        "speed": speed and f"{statistics.median(speed):,.0f} images/s, the median of {len(speed)} records",
        "net": yaml.safe_dump(to_dict(run.config)["net"], default_flow_style=True, width=10**6).strip(),
        "data": str(run.data or "") or run.config.data.set,
        "batch, precision, seed": f"{run.config.batch}, {run.config.precision}, {run.config.seed}",
        "machine": ", ".join(filter(None, [*machine, f"{facts['cores']} cores" if facts.get("cores") else ""])),
        "driver": facts.get("driver"),
        "commit": " and ".join(facts[key] for key in ("commit", "diff") if facts.get(key)),
        "versions": ", ".join(f"{name} {version}" for name, version in facts.get("versions", {}).items()),
    }
    return [[name, value] for name, value in rows.items() if value]


def starts(run: RunFacts) -> tuple[list[str], list[list[Cell]]]:
    """Return header and rows of a table of a run's starts: when, from which step, where, and what made it necessary."""
    rows: list[list[Cell]] = [
        [str(start.get("time", "")).replace("T", " "), int(start.get("step", 0)), int(start.get("ranks", 1)),
         str(start.get("host", "")), str(start.get("slurm_job") or "") or None, str(start.get("before") or "") or None]
        for start in run.starts
    ]  # fmt: skip
    return ["start", "from step", "ranks", "host", "Slurm job", "the one before"], rows


def _errors(record: Any) -> str:
    errors = [f"{record[key]:.2f} %" if record.get(key) is not None else "-" for key in ("top1_error", "top5_error")]
    return f"top-1 error {errors[0]}, top-5 {errors[1]} on {record['images']} images"
