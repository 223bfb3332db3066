"""Do real faults to real runs and see that nothing is lost.

    python -m tests.drills [--only WORDS] [--count N --seed S] [--json FILE]

Each drill trains a small net on a part of the demo set with two processes (gloo, DALI on the CPU), does one thing to
it, lets it come back, and compares: weights, momentum and statistics to the bit with an undisturbed run; the images of
every step and epoch with a ledger that the ranks keep; the log line by line. Exit codes: 0 all survived, 1 not all, 2
usage.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from senet.train import ledger
from tests.drills import damage, judge
from tests.drills.cases import BATCH, STEPS, Case, Reference, catalogue, said
from tests.drills.sandbox import Broken, Sandbox, Unable, make_data
from tests.helpers import final, not_finite


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="tests.drills", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="WORDS", help="drills whose names contain this")
    parser.add_argument("--count", type=int, metavar="N", help="so many of them, drawn by --seed")
    parser.add_argument("--seed", type=int, default=0, help="of the steps at which faults happen, too (default 0)")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep the runs of failed drills there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write what happened")
    args = parser.parse_args(argv)
    cases = [case for case in catalogue() if not args.only or args.only.lower() in case.name.lower()]
    if not cases:
        parser.error(f"--only {args.only}: no drill has such a name; --list prints them")
    if args.count is not None:
        cases = random.Random(args.seed).sample(cases, min(args.count, len(cases)))
    if args.list:
        print("\n".join(case.name for case in cases))
        return 0
    with tempfile.TemporaryDirectory(prefix="senet-drill-") as temporary:
        rows = perform(cases, Path(temporary), args.seed, args.out)
    failed, skipped = [row for row in rows if row["wrong"]], [row for row in rows if row["skipped"]]
    print(
        f"{len(rows) - len(failed) - len(skipped)} of {len(rows)} survived"
        + (f", {len(skipped)} skipped" if skipped else "")
    )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))
    return int(bool(failed))


def perform(cases: list[Case], folder: Path, seed: int, keep: Path | None) -> list[dict[str, Any]]:
    data = make_data(folder / "data")
    theatre = Reference(
        _run_alone(folder / "undisturbed", data, seed), _run_alone(folder / "stopped", data, seed, "term@0:11", 1)
    )
    print(
        f"{'drill':48}{'came back by':14}{'weights':>9}{'images':>8}{'log':>6}{'back after':>12}{'steps again':>13}",
        flush=True,
    )
    rows = []
    for number, case in enumerate(cases):
        sandbox = Sandbox(folder / f"case-{number}", data, seed)
        sandbox.folder.mkdir()
        rows.append(_perform(case, sandbox, dataclasses.replace(theatre)))
        _print(rows[-1])
        if keep and rows[-1]["wrong"]:
            shutil.copytree(sandbox.folder, keep / f"case-{number}", ignore=shutil.ignore_patterns("disk"))
        shutil.rmtree(sandbox.folder, ignore_errors=True)
    return rows


def _run_alone(folder: Path, data: Path, seed: int, faults: str = "", expect: int = 0) -> Sandbox:
    sandbox = Sandbox(folder, data, seed)
    folder.mkdir()
    sandbox.run(faults=faults, expect=expect)
    return sandbox


def _perform(case: Case, sandbox: Sandbox, theatre: Reference) -> dict[str, Any]:
    began = time.monotonic()
    row: dict[str, Any] = {
        "name": case.name,
        "by": "",
        "judged": case.judged,
        "why_not": case.why_not,
        "wrong": [],
        "skipped": "",
    }
    try:
        row["by"] = case.act(sandbox, theatre, random.Random(f"{sandbox.seed} {case.name}"))
        row["wrong"] = _judge(case, sandbox, theatre.undisturbed) + said(sandbox, case.words)
        damage.check_poison(sandbox.out)
        row["steps_again"] = ledger.read(sandbox.ledger)[1]
        row["seconds_back"] = judge.recovery(sandbox.ledger, sandbox.since)
    except Broken as error:
        row["wrong"].append(str(error))
    except Unable as error:
        row["skipped"] = str(error)
    finally:
        sandbox.close()
    row["seconds"] = time.monotonic() - began
    return row


def _judge(case: Case, sandbox: Sandbox, reference: Sandbox) -> list[str]:
    found = []
    if "weights" in case.judged:
        found += judge.weights(sandbox.out, reference.out)
    if "finite" in case.judged:
        found += not_finite(final(sandbox.out))
    if "images" in case.judged:
        found += judge.images(sandbox.ledger, reference.ledger, STEPS, BATCH)
    if "replaced" in case.judged:  # by any others, so some come twice
        found += judge.images(sandbox.ledger, reference.ledger, STEPS, BATCH, once=False)
    if "log" in case.judged:
        found += judge.log(sandbox.out, reference.out)
    return found


def _print(row: dict[str, Any]) -> None:
    if row["wrong"]:
        print(f"{row['name']:48}FAILED: {'; '.join(row['wrong'])[:2000]}", flush=True)
        return
    if row["skipped"]:
        print(f"{row['name']:48}skipped: {row['skipped']}", flush=True)
        return
    judged = {"images" if part == "replaced" else part for part in row["judged"]}
    marks = ["same" if part in judged else "-" for part in ("weights", "images", "log")]
    times = f"{row['seconds_back']:>10.1f} s{row['steps_again']:>13}"
    print(f"{row['name']:48}{row['by']:14}{marks[0]:>9}{marks[1]:>8}{marks[2]:>6}{times}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
