"""Real faults done to real runs: `pytest tests/drills -m drill` (see README.md beside this file).

Each drill trains a small net on a part of the demo set with two processes (gloo, DALI on the CPU), does one thing to
it, lets it come back, and compares it with an undisturbed run: weights, momentum and statistics to the bit; the images
of every step and epoch with a ledger that the ranks keep; the log line by line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.drills import acts, damage, judge, ledger
from tests.drills.acts import damaged, disturbed, restarted, stopped, survived, tracked
from tests.drills.sandbox import BATCH, STEPS, Job, Sandbox

ALL = "weights images log"
HANG = ("--hang-minutes", 0.15)
BEHIND = "is behind: in phase 'data' after"


@dataclass(frozen=True)
class Drill:
    """A row of the catalogue.

    `judged`: what must be as in the undisturbed run; "replaced" are images of which some come twice.
    `says`: what must have been printed. `always`: it is run for every change.
    """

    name: str
    act: acts.Act
    judged: str = ALL
    says: tuple[str, ...] = ()
    always: bool = False


DRILLS = [
    Drill("SIGKILL of rank 0", restarted("kill@0:{3-15}", often=False)),
    Drill("SIGKILL of rank 1", restarted("kill@1:{3-15}", often=False)),
    Drill("SIGKILL of rank 0, then of rank 1", restarted("kill@0:{2-8} kill@1:{9-15}:1", often=False)),
    Drill("SIGKILL while saving, after write", restarted("kill@0:{2-15}/write")),
    Drill("SIGKILL while saving, after sync", restarted("kill@0:{2-15}/sync")),
    Drill("SIGKILL while saving, after rename", restarted("kill@0:{2-15}/rename")),
    Drill("SIGKILL while saving, after names", restarted("kill@0:{2-15}/names")),
    Drill("SIGKILL while validating", restarted(f"kill@1:{STEPS}/validate")),
    Drill("SIGKILL of everything", disturbed(Job.kill_all, resumes=False)),
    Drill("SIGKILL of torchrun's agent", disturbed(acts.kill_agent), says=("torchrun is gone; saves",)),
    Drill("SIGKILL of a rank on two nodes", acts.two_nodes),
    Drill("loss of one node of two", acts.lost_node),
    # PIL decodes here, which gives other pixels.
    Drill("SIGKILL of a decoding process", survived(acts.kill_decoder, "--backend", "pillow"), "images"),
    Drill("TERM to torchrun while starting", acts.starting),
    Drill("TERM to torchrun while training", disturbed(acts.term)),
    Drill("TERM to torchrun twice", disturbed(acts.term_twice)),
    Drill("TERM to one rank while training", stopped("term@1:{2-7}", often=False)),
    Drill("TERM to one rank while validating", acts.in_validation, always=True),
    Drill("TERM to rank 0 while saving", stopped("term@0:{2-7}/write")),
    Drill("Ctrl-C twice", disturbed(acts.keyboard, resumes=False)),
    Drill("a stop file", disturbed(acts.stop_file, restarts=2), says=("the same command goes on",)),
    # It is looked at for longer than the undisturbed run takes.
    Drill("a slow rank", acts.slow, "finite"),
    Drill("a rank that hangs", restarted("hang@1:{3-15}", *HANG), says=(BEHIND, "most recent call first"), always=True),
    Drill("a rank that is frozen", survived(acts.freeze, *HANG), says=("is behind",)),
    Drill("a second start in one folder", acts.second_start, says=("in use by",)),
    Drill("the clock jumps by a day, then SIGKILL", restarted("clock@0:{2-7} kill@1:{+3}")),
    *(Drill(f"newest checkpoint {name}", damaged(harm), says=(reason,)) for name, harm, reason in damage.KINDS),
    Drill("disk full", acts.full_disk, says=("NOT written", "is not on disk", "this start is not noted"), always=True),
    # Sums over another number of ranks round otherwise.
    Drill("2 ranks, then 1, then 3", acts.other_sizes, "images", always=True),
    Drill("other images on one node", acts.other_images, says=("has other images than rank 0 on",)),
    Drill("undecodable images, and SIGKILL", acts.bad_images, "weights replaced log", says=("undecodable",)),
    # Steps are left out, so weights and figures are others.
    Drill("a NaN in one step", acts.one_nan, "images finite"),
    Drill("NaNs in two steps in a row", acts.two_nans, "images finite", always=True),
    Drill("W&B's server refuses, and SIGKILL", tracked("refuses")),
    Drill("W&B's server hangs, and SIGKILL", tracked("hangs")),
    Drill("W&B's server answers 500, and SIGKILL", tracked("500")),
    Drill("W&B's server revoked the key (401), and SIGKILL", tracked("401")),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "drill"),
    [
        pytest.param(number, drill, id=drill.name, marks=pytest.mark.drill(always=drill.always))
        for number, drill in enumerate(DRILLS)
    ],
)
def test_nothing_is_lost(
    number: int, drill: Drill, sandbox: Sandbox, record_property: Callable[[str, object], None]
) -> None:
    record_property("drill", [number, drill.name])
    came_back_by = drill.act(sandbox)
    assert sandbox.undisturbed
    reference, output = sandbox.undisturbed, sandbox.output
    wrong = [f"nobody said {words!r}" for words in drill.says if words not in output]
    if "weights" in drill.judged:
        wrong += judge.weights(sandbox.out, reference.out)
    if "finite" in drill.judged:
        wrong += judge.finite(sandbox.out)
    if "images" in drill.judged or "replaced" in drill.judged:  # replaced by any others, some images come twice
        wrong += judge.images(sandbox.ledger, reference.ledger, STEPS, BATCH, once="images" in drill.judged)
    if "log" in drill.judged:
        wrong += judge.log(sandbox.out, reference.out)
    marks = ["same" if part in drill.judged.replace("replaced", "images") else "-" for part in ALL.split()]
    back_after = f"{judge.recovery(sandbox.ledger, sandbox.since):.1f} s"
    steps_again = str(ledger.read(sandbox.ledger)[1])
    record_property("drill", [number, drill.name, came_back_by, *marks, back_after, steps_again])
    assert not wrong
