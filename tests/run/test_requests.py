"""Ranks learn of each other's requests after the same step, soon, and without asking in each step."""

from __future__ import annotations

import json
import os
import time

from senet import distributed
from senet.run.requests import Exchange, Request
from tests.helpers import run

STEPS = 300


def main() -> None:
    """Make short steps on each rank. Rank 1 requests to stop after some; in the end it says that a save is due."""
    with distributed.start("cpu") as world:
        exchange, asked, found = Exchange(world), 0, []
        for step in range(STEPS):
            request, due = Request.GO_ON, 60.0
            if world.rank == 1 and 150 <= step < 200:
                request = Request.STOP
            if world.rank == 1 and step >= 250:
                due = -1.0
            before = exchange._answer
            found.append(int(exchange.after_step(request, due)))
            asked += exchange._answer is not None and exchange._answer is not before
            time.sleep(0.01)
        exchange.finish()
        os.write(1, (json.dumps({"rank": world.rank, "asked": asked, "found": found}) + "\n").encode())


def test_two_ranks_know_the_greatest_request_after_the_same_step() -> None:
    done = run("tests.run.test_requests", ranks=2)
    assert done.returncode == 0, done.stderr
    one, other = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    assert one["found"] == other["found"]
    assert one["asked"] == other["asked"]
    first = one["found"].index(Request.STOP)
    assert 150 < first <= 190  # a quarter of a second, and one step
    assert one["asked"] < 120  # of 300 steps; every one of the last, where a save is due


if __name__ == "__main__":
    main()
