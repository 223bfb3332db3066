"""Print where a run is, or a table of all runs below a folder.

    python -m launch.status runs/imagenet/se_resnet50
    python -m launch.status runs
    python -m launch.status --line OUT     # for scripts: state, step of the newest checkpoint, and more in words

States: running (or killed), stopped, crashed (another start goes on), done, failed (another start would fail alike).
Exit codes: 0 done, 75 another start goes on, 1 failed for good, 2 nothing there; of a table that of the worst run.
"""

from __future__ import annotations

from pathlib import Path

from launch import guard
from launch.flags import Parser
from senet.run.status import Status, best, newest_step, read, word
from senet.system import table
from senet.system.run_folder import RunFolder


def main(argv: list[str] | None = None) -> int:
    parser = Parser("launch.status", __doc__)
    parser.add_argument("out", type=Path, nargs="?", default=Path("runs"), help="run folder, or a folder of them: runs")
    parser.add_argument("--line", action="store_true", help="one line for scripts, without labels")
    args = parser.parse_args(argv)
    out = args.out
    runs = [out] if args.line or read(out) else sorted(file.parent for file in out.rglob(RunFolder(out).status.name))
    found = {run: status for run in runs if (status := read(run))}
    if not found:
        print(f"{'nothing 0 ' if args.line else ''}no run has begun in {out}")
        return 2
    if args.line:
        print(word(found[out]), newest_step(out), found[out])
    elif out in found:
        print(_page(out, found[out]))
    else:
        rows = [
            (run.relative_to(out), word(now), f"{now.epoch}/{now.epochs}", newest_step(run), _error(run), now.at)
            for run, now in found.items()
        ]
        print(table.text(["run", "state", "epoch", "step", "best top-1 %", "updated"], rows))
    codes = {0 if status.state == "done" else 75 if status.resumable else 1 for status in found.values()}
    return next(code for code in (1, 75, 0) if code in codes)


def _page(out: Path, status: Status) -> str:
    rows = {
        "run": out,
        "state": word(status),
        "position": f"epoch {status.epoch} of {status.epochs}, checkpoint of step {newest_step(out):,}",
        "best": f"{_error(out)} % top-1 error",
        "updated": status.at,
        "reason": " ".join(status.reason.split()),
    }
    return "\n".join(f"{label:10}{text}" for label, text in rows.items() if text)


def _error(out: Path) -> str:
    error = best(out)
    return "-" if error is None else f"{error:.2f}"


if __name__ == "__main__":
    guard(main)
