"""Who holds up whom: two ranks, one of them slowed down on purpose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from senet.train.stragglers import STEPS, TWICE, StragglerDetector, Times
from tests.helpers import run_text


def reading(data: float, compute: float, communication: float, steps: int = STEPS) -> Times:
    return Times(steps, data, compute, communication)


def test_a_slow_rank_is_named_once_and_once_more_when_it_keeps_up_again() -> None:
    detector = StragglerDetector(["a", "b", "node7"])
    healthy = [reading(0.1, 4, 1.9), reading(0.2, 4.1, 1.7), reading(0.1, 4.3, 1.6)]
    slow = [reading(0.1, 3, 2.9), reading(0.1, 3, 2.9), reading(2.5, 3.3, 0.2)]
    assert not [change for _ in range(5) for change in detector.compare(healthy)]
    assert not detector.compare(slow)  # once is chance
    assert not detector.compare(healthy)
    found = [detector.compare(slow) for _ in range(6)]
    (change,) = [change for changes in found for change in changes]
    assert change["factor"] > 1.8
    shares = {"data": 0.417, "compute": 0.55, "communication": 0.033}
    assert change == {"slow_rank": 2, "host": "node7", "over": False, "factor": change["factor"], **shares}
    (over,) = [change for _ in range(6) for change in detector.compare(healthy)]
    assert (over["slow_rank"], over["over"]) == (2, True)


def test_short_readings_add_up_before_they_count() -> None:
    detector = StragglerDetector(["a", "b"])
    short = [reading(0, 0.05, 0.25, 1), reading(0, 0.3, 0, 1)]
    found = [bool(detector.compare(short)) for _ in range(TWICE * STEPS)]
    assert found == [False] * (TWICE * STEPS - 1) + [True]


PROGRAM = """
import json, time
from dataclasses import astuple
import torch
from torch import nn
from senet import distributed
from senet.train.stragglers import StragglerDetector, StepTimer, Times

def measure(world):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 12 * 12, 10))
    model, timer, waited = world.distribute(net), StepTimer(), 0.0
    timer.watch(net[0].weight)
    for what in ("healthy", "data", "compute"):
        detector, found = StragglerDetector(["node"] * world.size, steps=6, seconds=0.5), []
        for look in range(3):
            for step in range(6):
                timer.before_data(step, waited)
                wait = 0.2 if what == "data" and world.rank else 0.01
                time.sleep(wait)
                waited += wait
                loss = model(torch.ones(4, 3, 16, 16)).sum()
                # All take a while, so that a busy machine's moods do not count.
                time.sleep(0.35 if what == "compute" and world.rank else 0.15)
                loss.backward()
                timer.after_compute(step, waited)
            timer.pause()
            time.sleep(0.2 * world.rank)  # a validation, say: no part of the steps
            readings = [Times(*numbers) for numbers in world.all_gather_object(list(astuple(timer.read())))]
            found += detector.compare(readings)
        if world.is_main:
            print("found", json.dumps([what, found]), flush=True)

def main():  # no global may hold a process group: gloo's threads must end before the interpreter does
    world = distributed.start("cpu")
    try:
        measure(world)
    finally:
        world.close()

main()
"""


def test_two_ranks_one_slowed_in_its_data_or_its_arithmetic(tmp_path: Path) -> None:
    done = run_text(PROGRAM, tmp_path, ranks=2)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = dict(
        json.loads(line.removeprefix("found ")) for line in done.stdout.splitlines() if line.startswith("found ")
    )
    assert found["healthy"] == []
    for what in ("data", "compute"):
        (said,) = found[what]
        assert (said["slow_rank"], said["over"]) == (1, False)
        assert said["communication"] < 0.2
        assert said["factor"] > 1.3
    assert found["data"][0]["data"] > 0.3
    assert found["compute"][0]["data"] < 0.1
