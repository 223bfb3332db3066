"""Real faults done to real runs: `pytest tests/drills -m drill` (see README.md beside this file).

Each drill trains a small net on a part of the demo set with two processes (gloo, DALI on the CPU), does one thing to
it, lets it come back, and compares it with an undisturbed run: weights, momentum and statistics to the bit; the images
of every step and epoch with a ledger that the ranks keep; the log line by line.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from senet.run import status
from senet.train import ledger
from tests.drills import damage, judge
from tests.drills.sandbox import BATCH, LAST, RESTARTS, STEPS, Job, Sandbox, free_port, small_disk
from tests.helpers import events, final, lines
from tests.track.server import serving

KEY = "0" * 40  # of nobody's W&B account
ALL = "weights images log"
Act = Callable[[Sandbox], str]  # does it, brings the run to its end, and returns what brought it back


@dataclass(frozen=True)
class Drill:
    """A row of the catalogue. `judged`: what must be as undisturbed; `says`: what must have been printed; `always`: run
    for every change."""

    name: str
    act: Act
    judged: str = ALL
    says: tuple[str, ...] = ()
    always: bool = False


# --------------------------------------------------------------------------------------------------- what can be done


def restarted(faults: str, *words: object, by: str = "torchrun", **how: object) -> Act:
    """Ranks fail by themselves; torchrun starts them again."""

    def act(sandbox: Sandbox) -> str:
        sandbox.run(*words, faults=faults, restarts=RESTARTS, **how)
        return by

    return act


def stopped(faults: str, often: bool = True) -> Act:
    """A rank is asked to stop at a certain moment; the same command goes on."""

    def act(sandbox: Sandbox) -> str:
        sandbox.run(faults=faults, expect=1, often=often)
        return goes_on(sandbox)

    return act


def disturbed(harm: Callable[[Job], object], restarts: int = 0, resumes: bool = True) -> Act:
    """Something is done to the processes from outside, in the midst of a training; the same command goes on."""

    def act(sandbox: Sandbox) -> str:
        job = sandbox.start(faults="slow@0:2", often=False, restarts=restarts)
        sandbox.reach(job, 3)
        began = time.monotonic()
        harm(job)
        job.wait()
        assert time.monotonic() - began < 25  # torchrun kills after 30
        return goes_on(sandbox, resumes)

    return act


def damaged(harm: Callable[[Path], None]) -> Act:
    """The newest checkpoint of a stopped run is harmed."""

    def act(sandbox: Sandbox) -> str:
        assert sandbox.stopped
        shutil.copytree(sandbox.stopped.out, sandbox.out)
        shutil.copytree(sandbox.stopped.ledger, sandbox.ledger)
        harm(sandbox.newest())
        sandbox.since = time.monotonic_ns()
        sandbox.run()
        assert not (sandbox.out / "checkpoints" / damage.SIGN).exists(), "the code in the checkpoint was run"
        return "same command"

    return act


def tracked(mood: str) -> Act:
    """W&B's server misbehaves. The undisturbed run has no W&B at all, so it may cost nothing but a wait at the end."""

    def act(sandbox: Sandbox) -> str:
        with serving() as server:
            server.mood = mood
            address = f"http://127.0.0.1:{free_port()}" if mood == "refuses" else server.address
            account = {"WANDB_BASE_URL": address, "WANDB_API_KEY": KEY}
            sandbox.run(faults="kill@0:{2-15}", restarts=RESTARTS, **account)
        assert KEY not in sandbox.output + (sandbox.out / "run.json").read_text()
        return "torchrun"

    return act


def goes_on(sandbox: Sandbox, resumes: bool = True) -> str:
    sandbox.run()
    assert "resumed" in sandbox.jobs[-1].output or not resumes, "began anew"
    return "same command"


# --------------------------------------------------------------------------------------------------------- processes


def everything(sandbox: Sandbox) -> str:
    job = sandbox.start(often=False)
    sandbox.reach(job, sandbox.dice.randrange(2, LAST))
    job.kill_all()
    sandbox.run()
    return "same command"


def agent(sandbox: Sandbox) -> str:
    """Its workers notice, save and end by themselves; a start that comes too early waits for them."""
    job = sandbox.start(faults="slow@0:2", often=False)
    sandbox.reach(job, 3)
    job.process.kill()
    job.process.wait()
    goes_on(sandbox)
    assert "hangs" not in sandbox.output
    return "same command"


def two_nodes(sandbox: Sandbox) -> str:
    port = free_port()
    for job in [sandbox.start(port=port, faults="kill@1:{3-15}", restarts=3) for _ in range(2)]:
        job.expect(0)
    return "torchrun"


def lost_node(sandbox: Sandbox) -> str:
    """One of two agents with its ranks; the other one waits for it to come back."""
    port = free_port()
    first = sandbox.start(port=port, faults="slow@0:2", restarts=3)
    first.until(lambda: listens(port), "the first node listens")
    second = sandbox.start(port=port, faults="slow@0:2", restarts=3)
    sandbox.reach(first, sandbox.dice.randrange(3, 6))
    second.kill_all()
    back = sandbox.start(port=port, restarts=3)
    first.expect(0)
    back.expect(0)
    return "torchrun"


def decoding_process(sandbox: Sandbox) -> str:
    job = sandbox.start("--backend", "pillow", faults="slow@0:2", restarts=RESTARTS)
    sandbox.reach(job, 3)
    os.kill([number for number in job.family() if is_fork(number)][-1], signal.SIGKILL)
    job.expect(0)
    return "torchrun"


def starting(sandbox: Sandbox) -> str:
    job = sandbox.start()
    job.until(lambda: len(job.family()) > sandbox.ranks, "its workers are there")
    time.sleep(sandbox.dice.uniform(0.5, 3))
    job.process.terminate()
    job.wait()
    return goes_on(sandbox, resumes=False)


def once(job: Job) -> None:
    job.process.terminate()


def twice(job: Job) -> None:
    job.process.terminate()
    time.sleep(0.3)
    job.process.terminate()


def keyboard(job: Job) -> None:
    """As at a terminal: the whole group gets it, and someone impatient presses again."""
    for _ in range(2):
        os.killpg(job.process.pid, signal.SIGINT)
        time.sleep(0.2)


def stop_file(sandbox: Sandbox) -> str:
    """Also under --max-restarts, where torchrun would start it again."""

    def stop(job: Job) -> None:
        (sandbox.out / "stop").touch()
        job.expect(1)
        found = status.read(sandbox.out)
        assert found is not None
        assert (found.state, found.exit_code, found.step < LAST) == ("stopped", 75, True)
        assert not (sandbox.out / "stop").exists()

    return disturbed(stop, restarts=RESTARTS)(sandbox)


def in_validation(sandbox: Sandbox) -> str:
    """It does not wait for the end of the validation, and the epoch is not trained again."""
    sandbox.run(faults=f"term@1:{STEPS}/validate", expect=1)
    assert not lines(sandbox.out, kind="val")
    progress = final(sandbox.out)["progress"]
    assert (progress["epoch"], progress["step"]) == (0, STEPS)
    return goes_on(sandbox)


def frozen(sandbox: Sandbox) -> str:
    """SIGSTOP: it can say nothing itself, nor end when asked to."""
    job = sandbox.start("--hang-minutes", 0.15, faults="slow@0:2", restarts=RESTARTS)
    sandbox.reach(job, 3)
    os.kill(max(n for n in job.family() if "launch.train" in argv(n) and n != job.process.pid), signal.SIGSTOP)
    job.expect(0)
    return "torchrun"


def second_start(sandbox: Sandbox) -> str:
    first = sandbox.start(faults="hang@1:5")
    sandbox.reach(first, 4)
    sandbox.run(expect=1)
    first.kill_all()
    sandbox.run()
    return "refused"


def slow(sandbox: Sandbox) -> str:
    """It costs time and nothing else; the log says whose fault it is."""
    sandbox.run("epochs=3", faults="slow@1:1")
    assert [line["slow_rank"] for line in events(sandbox.out) if "slow_rank" in line] == [1]
    return "named"


# ------------------------------------------------------------------------------------------- disk, data, numbers


def full_disk(sandbox: Sandbox) -> str:
    """It costs checkpoints and not the run; what was not kept is trained again when there is space."""
    with small_disk(sandbox.folder / "disk", 24) as disk:
        (disk / "filler").write_bytes(b"x" * (6 << 20))
        out = disk / "run"
        job = sandbox.start("--keep", 100, out=out)
        job.until((out / "checkpoints/step-00000005.pt.json").exists, "its fifth checkpoint")
        (disk / "more").write_bytes(b"x" * (5 << 20))
        job.expect(0)
        assert final(out)["progress"]["epoch"] < 2
        (disk / "more").unlink()
        sandbox.run(out=out)
        shutil.copytree(out, sandbox.out)
    return "same command"


def other_sizes(sandbox: Sandbox) -> str:
    """Sums over another number of ranks round differently, so only the images are the same."""
    sandbox.run(faults="term@0:{2-7}", expect=1)
    sandbox.run(faults="term@0:{+4}", expect=1, ranks=1)
    sandbox.run(ranks=3)
    return "same command"


def other_images(sandbox: Sandbox) -> str:
    lacking = sandbox.folder / "lacking"
    shutil.copytree(sandbox.data, lacking)
    min(lacking.glob("train/*/*")).unlink()
    port = free_port()
    jobs = [sandbox.start(port=port), sandbox.start("--data", lacking, port=port)]
    assert 0 not in [job.wait() for job in jobs]
    assert not (sandbox.out / "checkpoints").exists()
    sandbox.run()
    return "refused"


def bad_images(sandbox: Sandbox) -> str:
    """Beside an undisturbed run on the same images, a killed one."""
    spoilt = sandbox.folder / "spoilt"
    shutil.copytree(sandbox.data, spoilt)
    for path in sandbox.dice.sample(sorted(spoilt.glob("train/*/*")), 3):
        path.write_bytes(path.read_bytes()[:300])
    sandbox.data = spoilt
    sandbox.undisturbed = Sandbox(sandbox.folder / "reference", spoilt, sandbox.device, sandbox.ranks)
    sandbox.undisturbed.run()
    return restarted("kill@0:{3-15}")(sandbox)


def one_nan(sandbox: Sandbox) -> str:
    """In the very first step too, when there is no momentum yet; on all ranks alike, and the images are named."""
    sandbox.run(faults="nan@1:0 nan@1:{3-15}")
    for step in (1, sandbox.drawn + 1):
        assert f"left out 1 steps from step {step}: gradients not finite" in sandbox.output
        dumps = [json.loads(file.read_text()) for file in sandbox.out.glob(f"nonfinite-{step:08d}-rank*.json")]
        named = {name for dump in dumps for name in dump["images"][str(step)]}
        assert (len(dumps), len(named)) == (sandbox.ranks, BATCH)
        assert all(Path(name).exists() for name in named)
    assert [(event["skipped"], event["first_skipped"]) for event in events(sandbox.out)] == [
        (1, 1),
        (1, sandbox.drawn + 1),
    ]
    return "left out"


def two_nans(sandbox: Sandbox) -> str:
    sandbox.run("--max-skips", 2, "--log-every", 1, faults="nan@0:{2-5} nan@0:{+1}")
    second = sandbox.drawn
    assert "went back to epoch" in sandbox.output
    assert f"leaves out steps {second} to {second + 1}" in sandbox.output
    assert final(sandbox.out)["skipped"] == [[second - 1, second]]
    return "rewound"


# ----------------------------------------------------------------------------------------------- looking at processes


def listens(port: int) -> bool:
    tables = [Path(f"/proc/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    fields = [line.split() for table in tables for line in table]
    return any(field[1].endswith(f":{port:04X}") and field[3] == "0A" for field in fields)


def argv(number: int) -> str:
    try:
        return Path(f"/proc/{number}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def is_fork(number: int) -> bool:
    """Whether the fork server made a process: its parent has the same command."""
    if "forkserver" not in (command := argv(number)):
        return False
    return argv(int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[1])) == command


# ------------------------------------------------------------------------------------------------------ the catalogue

HANG = ("--hang-minutes", 0.15)
BEHIND = "is behind: in phase 'data' after"
DRILLS = [
    Drill("SIGKILL of rank 0", restarted("kill@0:{3-15}", often=False)),
    Drill("SIGKILL of rank 1", restarted("kill@1:{3-15}", often=False)),
    Drill("SIGKILL of rank 0, then of rank 1", restarted("kill@0:{2-8} kill@1:{9-15}:1", often=False)),
    Drill("SIGKILL while saving, after write", restarted("kill@0:{2-15}/write")),
    Drill("SIGKILL while saving, after sync", restarted("kill@0:{2-15}/sync")),
    Drill("SIGKILL while saving, after rename", restarted("kill@0:{2-15}/rename"), always=True),
    Drill("SIGKILL while saving, after manifest", restarted("kill@0:{2-15}/manifest")),
    Drill("SIGKILL while validating", restarted(f"kill@1:{STEPS}/validate")),
    Drill("SIGKILL of everything", everything),
    Drill("SIGKILL of torchrun's agent", agent, says=("torchrun is gone; saves and stops",), always=True),
    Drill("SIGKILL of a rank on two nodes", two_nodes, always=True),
    Drill("loss of one node of two", lost_node),
    Drill("SIGKILL of a decoding process", decoding_process, "images"),  # PIL decodes: other pixels
    Drill("TERM to torchrun while starting", starting),
    Drill("TERM to torchrun while training", disturbed(once)),
    Drill("TERM to torchrun twice", disturbed(twice)),
    Drill("TERM to one rank while training", stopped("term@1:{2-7}", often=False)),
    Drill("TERM to one rank while validating", in_validation, always=True),
    Drill("TERM to rank 0 while saving", stopped("term@0:{2-7}/write")),
    Drill("Ctrl-C twice", disturbed(keyboard, resumes=False)),
    Drill("a stop file", stop_file, says=("the same command goes on from here",), always=True),
    Drill("a slow rank", slow, "finite"),  # is looked at for longer than the undisturbed run takes
    Drill("a rank that hangs", restarted("hang@1:{3-15}", *HANG), says=(BEHIND, "most recent call first"), always=True),
    Drill("a rank that is frozen", frozen, says=("is behind",)),
    Drill("a second start in one folder", second_start, says=("in use by",)),
    Drill("the clock jumps by a day, then SIGKILL", restarted("clock@0:{2-7} kill@1:{+3}")),
    *(Drill(f"newest checkpoint {name}", damaged(harm), says=(reason,)) for name, harm, reason in damage.KINDS),
    Drill("disk full", full_disk, says=("NOT written", "MiB free", "training goes on"), always=True),
    Drill("2 ranks, then 1, then 3", other_sizes, "images", always=True),
    Drill("other images on one node", other_images, says=("has other images than rank 0 on",), always=True),
    Drill("undecodable images, and SIGKILL", bad_images, "weights replaced log", says=("undecodable",)),
    Drill("a NaN in one step", one_nan, "images finite", always=True),  # a step that is left out is other arithmetic
    Drill("NaNs in two steps in a row", two_nans, "images finite", always=True),
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
    reference, wrong = (
        sandbox.undisturbed,
        [f"nobody said {words!r}" for words in drill.says if words not in sandbox.output],
    )
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
