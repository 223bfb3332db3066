"""The timing engine takes turns, keeps to its limits, and goes on without what fails."""

import time

import pytest
import torch

from senet.system.timing import Effort, Late, Spread, Timing, interleave, measure, ratios, timed, until


def test_what_fails_costs_the_others_nothing() -> None:
    def broken() -> None:
        raise RuntimeError("CUDA out of memory.\nTried to allocate")

    calls: list[str] = []
    makers = {
        "good": lambda: lambda: calls.append("good"),
        "bad": lambda: broken,
        "other": lambda: lambda: calls.append("other"),
    }
    found = measure(makers, Effort(rounds=3, seconds=0.0, warmup=0))
    assert found["bad"].failure == "RuntimeError: CUDA out of memory."
    assert len(found["good"].seconds) == len(found["other"].seconds) == 3
    assert ratios(found["good"], found["bad"]) is None
    # Each round begins with another contestant.
    assert calls[-6:] == ["good", "other", "other", "good", "good", "other"]


def test_no_contestant_is_begun_when_time_is_over() -> None:
    def slow() -> None:
        torch.zeros(1)
        for _ in range(10**9):
            pass

    effort = Effort(1, 0.0, warmup=0, deadline=time.monotonic() + 0.3)
    found = measure({"slow": lambda: slow, "next": lambda: lambda: None}, effort)
    assert found["slow"].failure == found["next"].failure == "Late: no time was left"


def test_timings_are_there_after_each_round_and_the_slow_are_left_behind() -> None:
    seen = []
    makers = {"fast": lambda: lambda: None, "slow": lambda: lambda: time.sleep(0.05)}
    for timings in interleave(makers, Effort(rounds=3, steps=1, behind=5.0)):
        seen.append([len(timing.seconds) for timing in timings.values()])
    assert seen == [[1, 1]]  # the fast one is alone then: nothing is left to decide
    for timings in interleave(makers, Effort(rounds=2, steps=2, total=0.5)):
        seen.append([len(timing.seconds) for timing in timings.values()])
    assert seen[1:3] == [[1, 1], [2, 2]]
    assert len(seen) > 4
    assert timings["slow"].median > 0.05 > 2 * timings["slow"].cpu[0]


def test_seconds_are_those_of_a_step() -> None:
    seconds, cpu = timed(lambda: time.sleep(0.02), 5)
    assert 0.02 < seconds < 0.1
    assert cpu < 0.01


def test_ratios_come_from_pairs() -> None:
    ratio = ratios(Timing([1.0, 2.0, 4.0]), Timing([2.0, 4.0, 4.0]))
    assert ratio == Spread(2.0, 1.0, 2.0, 3)
    assert str(ratio) == "2.00 (1.00-2.00)"
    assert str(Spread.of([0.5])) == "0.500"
    assert str(Spread(1234.5, 999.0, 0.01234, 2)) == "1,234 (999-0.0123)"


def test_limits_of_time_nest() -> None:
    def work() -> None:
        with until(time.monotonic() + 60):
            pass
        time.sleep(30)

    with pytest.raises(Late), until(time.monotonic() + 0.2):
        work()
    with pytest.raises(Late), until(time.monotonic() - 1):
        work()
    time.sleep(0.3)  # no alarm is left behind
