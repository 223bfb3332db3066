"""Print where a run is, on one line: its state, the step of its newest checkpoint, and more in words.

    python -m launch.status OUT

States: running (or killed), stopped, crashed, done, failed, nothing.
Exit codes: 0 done, 75 another start goes on, 1 failed for good, 2 nothing there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from launch import guard
from senet.run.status import newest_step, read


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="launch.status", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="run folder")
    out = parser.parse_args(argv).out
    status = read(out)
    if status is None:
        print(f"nothing 0 no run has begun in {out}")
        return 2
    state = "crashed" if status.state == "failed" and status.resumable else status.state
    print(state, newest_step(out), status)
    return 0 if state == "done" else 75 if status.resumable else 1


if __name__ == "__main__":
    guard(main)
