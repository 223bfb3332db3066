"""The catalogue: what is done to a run, and what must be true afterwards."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from senet.run import status
from senet.train import ledger
from tests.drills import damage
from tests.drills.sandbox import Broken, Job, Sandbox, free_port, small_disk
from tests.drills.server import KEY, serving
from tests.helpers import events

STEPS, BATCH, LAST = 8, 12, 16  # of an epoch, of a step, of the run
RESTARTS = 2


@dataclass
class Reference:
    """What all drills share: the undisturbed run, and one that was stopped in its second epoch."""

    undisturbed: Sandbox
    stopped: Sandbox


@dataclass(frozen=True)
class Case:
    name: str
    act: Callable[
        [Sandbox, Reference, random.Random], str
    ]  # does it, brings the run to its end, and says what brought it back
    judged: tuple[str, ...] = ("weights", "images", "log")
    why_not: str = ""  # what is not judged, and why
    words: tuple[str, ...] = field(default=())  # one of which must have been said


def catalogue() -> list[Case]:
    return [*_killed(), *_asked_to_stop(), *_hung(), *_damaged(), *_world(), *_numbers(), *_tracking()]


# --------------------------------------------------------------------------------------------------------------- killed


def _killed() -> list[Case]:
    def rank(number: int) -> Callable[..., str]:
        def act(sandbox: Sandbox, _: Reference, dice: random.Random) -> str:
            sandbox.run(faults=f"kill@{number}:{dice.randrange(3, LAST)}", restarts=RESTARTS, often=False)
            return "torchrun"

        return act

    def in_save(phase: str) -> Callable[..., str]:
        def act(sandbox: Sandbox, _: Reference, dice: random.Random) -> str:
            sandbox.run(faults=f"kill@0:{dice.randrange(2, LAST)}/{phase}", restarts=RESTARTS)
            return "torchrun"

        return act

    def in_validation(sandbox: Sandbox, _: Reference, dice: random.Random) -> str:
        sandbox.run(faults=f"kill@{dice.randrange(2)}:{STEPS}/validate", restarts=RESTARTS)
        return "torchrun"

    def again_and_again(sandbox: Sandbox, _: Reference, dice: random.Random) -> str:
        first, second = sorted(dice.sample(range(2, LAST), 2))
        sandbox.run(faults=f"kill@0:{first} kill@1:{second}:1", restarts=RESTARTS, often=False)
        return "torchrun"

    def everything(sandbox: Sandbox, _: Reference, dice: random.Random) -> str:
        job = sandbox.start(often=False)
        _reach(sandbox, job, dice.randrange(2, LAST))
        job.kill_all()
        sandbox.run()
        return "same command"

    def agent(sandbox: Sandbox, _: Reference, dice: random.Random) -> str:
        """Its workers notice, save and end by themselves; a start that comes too early waits for them."""
        job = sandbox.start(faults="slow@0:2", often=False)
        _reach(sandbox, job, 3)
        job.process.kill()
        job.process.wait()
        sandbox.run()
        return "same command"

    def node(sandbox: Sandbox, _: Reference, dice: random.Random) -> str:
        """One of two agents with its rank; the other one waits for it to come back."""
        port = free_port()
        host = sandbox.node(port, faults="slow@0:2")
        host.until(lambda: _listens(port), "the first node listens")
        other = sandbox.node(port, faults="slow@0:2")
        _reach(sandbox, host, dice.randrange(3, 6))
        other.kill_all()
        back = sandbox.node(port)
        for job in (host, back):
            if code := job.wait():
                raise Broken(f"exit code {code}: {job.told[-400:]!r}")
        return "torchrun"

    def loader_worker(sandbox: Sandbox, _: Reference, dice: random.Random) -> str:
        job = sandbox.start("--backend", "pillow", faults="slow@0:2", restarts=RESTARTS)
        _reach(sandbox, job, 3)
        workers = [number for number in job.family() if _is_fork(number)]
        if not workers:
            raise Broken("no decoding process found")
        os.kill(workers[-1], signal.SIGKILL)
        if code := job.wait():
            raise Broken(f"exit code {code}: {job.told[-400:]!r}")
        return "torchrun"

    return [
        Case("SIGKILL of rank 0", rank(0)),
        Case("SIGKILL of rank 1", rank(1)),
        Case("SIGKILL of rank 0, then of rank 1", again_and_again),
        *(
            Case(f"SIGKILL while saving, after {phase}", in_save(phase))
            for phase in ("write", "sync", "rename", "manifest")
        ),
        Case("SIGKILL while validating", in_validation),
        Case("SIGKILL of everything", everything),
        Case("SIGKILL of torchrun's agent", agent),
        Case("loss of one node of two", node),
        Case(
            "SIGKILL of a decoding process",
            loader_worker,
            ("images",),
            "PIL decodes: other pixels than the undisturbed run's",
        ),
    ]


# -------------------------------------------------------------------------------------------------------- asked to stop


def _asked_to_stop() -> list[Case]:
    def itself(where: Callable[[random.Random], str], often: bool = True) -> Callable[..., str]:
        def act(sandbox: Sandbox, _: Reference, dice: random.Random) -> str:
            sandbox.run(faults=where(dice), expect=1, often=often)
            return _goes_on(sandbox)

        return act

    def starting(sandbox: Sandbox, _: Reference, dice: random.Random) -> str:
        job = sandbox.start()
        job.until(lambda: len(job.family()) >= 3, "its workers are there")
        time.sleep(dice.uniform(0.5, 3))
        job.process.terminate()
        job.wait()
        return _goes_on(sandbox, resumed=False)

    def agent(sandbox: Sandbox, _: Reference, dice: random.Random) -> str:
        job = sandbox.start(faults="slow@0:2", often=False)
        _reach(sandbox, job, 3)
        began = time.monotonic()
        job.process.terminate()
        job.wait()
        if time.monotonic() - began > 25:  # torchrun kills after 30
            raise Broken(f"took {time.monotonic() - began:.0f} s to stop")
        return _goes_on(sandbox)

    def twice(sandbox: Sandbox, _: Reference, dice: random.Random) -> str:
        job = sandbox.start(faults="slow@0:2", often=False)
        _reach(sandbox, job, 3)
        job.process.terminate()
        time.sleep(0.3)
        job.process.terminate()
        job.wait()
        return _goes_on(sandbox)

    def keyboard(sandbox: Sandbox, _: Reference, dice: random.Random) -> str:
        """As at a terminal: the whole group gets it, and someone impatient presses again."""
        job = sandbox.start(faults="slow@0:2", often=False)
        _reach(sandbox, job, 3)
        os.killpg(job.process.pid, signal.SIGINT)
        time.sleep(0.2)
        os.killpg(job.process.pid, signal.SIGINT)
        job.wait()
        return _goes_on(sandbox, resumed=False)

    def by_file(sandbox: Sandbox, _: Reference, dice: random.Random) -> str:
        """Also under --max-restarts, where torchrun would start it again."""
        job = sandbox.start(faults="slow@0:2", restarts=RESTARTS, often=False)
        _reach(sandbox, job, 3)
        (sandbox.out / "stop").touch()
        if job.wait() != 1:
            raise Broken("torchrun did not end")
        if (found := status.read(sandbox.out)) is None or found.state != "stopped" or found.step >= LAST:
            raise Broken(f"status is {found}")
        return _goes_on(sandbox)

    return [
        Case("TERM to torchrun while starting", starting),
        Case("TERM to torchrun while training", agent),
        Case("TERM to torchrun twice", twice),
        Case("TERM to one rank while training", itself(lambda dice: f"term@1:{dice.randrange(2, STEPS)}", often=False)),
        Case("TERM to one rank while validating", itself(lambda dice: f"term@1:{STEPS}/validate")),
        Case("TERM to rank 0 while saving", itself(lambda dice: f"term@0:{dice.randrange(2, STEPS)}/write")),
        Case("Ctrl-C twice", keyboard),
        Case("a stop file", by_file),
    ]


# ----------------------------------------------------------------------------------------------------------------- hung


def _hung() -> list[Case]:
    def hang(sandbox: Sandbox, _: Reference, dice: random.Random) -> str:
        sandbox.run("--hang-minutes", 0.15, faults=f"hang@1:{dice.randrange(3, LAST)}", restarts=RESTARTS)
        return "torchrun"

    def frozen(sandbox: Sandbox, _: Reference, dice: random.Random) -> str:
        """SIGSTOP: it can say nothing itself, nor end when asked to."""
        job = sandbox.start("--hang-minutes", 0.15, faults="slow@0:2", restarts=RESTARTS)
        _reach(sandbox, job, 3)
        victim = max(
            number for number in job.family() if "launch.train" in _command(number) and number != job.process.pid
        )
        os.kill(victim, signal.SIGSTOP)
        if code := job.wait():
            raise Broken(f"exit code {code}: {job.told[-400:]!r}")
        return "torchrun"

    def second_start(sandbox: Sandbox, _: Reference, dice: random.Random) -> str:
        first = sandbox.start(faults="hang@1:5")
        _reach(sandbox, first, 4)
        sandbox.run(expect=1)
        first.kill_all()
        sandbox.run()
        return "refused"

    def clock(sandbox: Sandbox, _: Reference, dice: random.Random) -> str:
        step = dice.randrange(2, STEPS)
        sandbox.run(faults=f"clock@0:{step} kill@1:{step + 3}", restarts=RESTARTS)
        return "torchrun"

    def slow(sandbox: Sandbox, _: Reference, dice: random.Random) -> str:
        """It costs time and nothing else; the log says whose fault it is."""
        sandbox.run("epochs=3", faults="slow@1:1")
        if (named := [line["slow_rank"] for line in events(sandbox.out) if "slow_rank" in line]) != [1]:
            raise Broken(f"slow ranks that were named: {named}")
        return "named"

    return [
        Case("a slow rank", slow, ("finite",), "is looked at for longer than the undisturbed run takes"),
        Case("a rank that hangs", hang, words=("is behind",)),
        Case("a rank that is frozen", frozen, words=("is behind",)),
        Case("a second start in one folder", second_start, words=("in use by",)),
        Case("the clock jumps by a day, then SIGKILL", clock),
    ]


# -------------------------------------------------------------------------------------------------------------- damaged


def _damaged() -> list[Case]:
    def newest(harm: Callable[[Path], None]) -> Callable[..., str]:
        def act(sandbox: Sandbox, theatre: Reference, _: random.Random) -> str:
            shutil.copytree(theatre.stopped.out, sandbox.out)
            shutil.copytree(theatre.stopped.ledger, sandbox.ledger)
            harm(sandbox.newest())
            sandbox.since = time.monotonic_ns()
            sandbox.run()
            return "same command"

        return act

    def full_disk(sandbox: Sandbox, _: Reference, dice: random.Random) -> str:
        """It costs checkpoints and not the run; what was not kept is trained again when there is space."""
        with small_disk(sandbox.folder / "disk", 24) as disk:
            (disk / "filler").write_bytes(b"x" * (6 << 20))
            out = disk / "run"
            job = sandbox.start("--keep", 100, out=out)
            job.until(lambda: (out / "checkpoints/step-00000005.pt.json").exists(), "its fifth checkpoint")
            (disk / "more").write_bytes(b"x" * (5 << 20))
            if code := job.wait():
                raise Broken(f"exit code {code}: {job.told[-400:]!r}")
            (disk / "more").unlink()
            sandbox.run(out=out)
            shutil.copytree(out, sandbox.out)
        return "same command"

    return [
        *(
            Case(f"newest checkpoint {name}", newest(harm), words=(words,) if words else ())
            for name, harm, words in damage.KINDS
        ),
        Case("disk full", full_disk, words=("NOT written",)),
    ]


# ----------------------------------------------------------------------------------------------------- data, world, W&B


def _world() -> list[Case]:
    def other_sizes(sandbox: Sandbox, _: Reference, dice: random.Random) -> str:
        first = dice.randrange(2, STEPS)
        sandbox.run(faults=f"term@0:{first}", expect=1, ranks=2)
        sandbox.run(faults=f"term@0:{first + 4}", expect=1, ranks=1)
        sandbox.run(ranks=3)
        return "same command"

    def missing_on_one_node(sandbox: Sandbox, _: Reference, dice: random.Random) -> str:
        lacking = sandbox.folder / "lacking"
        shutil.copytree(sandbox.data, lacking)
        next(iter(sorted(lacking.glob("train/*/*")))).unlink()
        port = free_port()
        jobs = [sandbox.node(port, restarts=0), sandbox.node(port, "--data", lacking, restarts=0)]
        if 0 in [job.wait() for job in jobs]:
            raise Broken("was not refused")
        sandbox.run()
        return "refused"

    def bad_images(sandbox: Sandbox, theatre: Reference, dice: random.Random) -> str:
        """Beside an undisturbed run on the same images, a killed one."""
        spoilt = sandbox.folder / "spoilt"
        shutil.copytree(sandbox.data, spoilt)
        for path in dice.sample(sorted(spoilt.glob("train/*/*")), 3):
            path.write_bytes(path.read_bytes()[:300])
        reference = Sandbox(sandbox.folder / "reference", spoilt, sandbox.seed)
        reference.folder.mkdir()
        reference.run()
        theatre.undisturbed = reference
        sandbox.run(data=spoilt, faults=f"kill@0:{dice.randrange(3, LAST)}", restarts=RESTARTS)
        return "torchrun"

    return [
        Case("2 ranks, then 1, then 3", other_sizes, ("images",), "sums over other numbers of ranks round otherwise"),
        Case("other images on one node", missing_on_one_node, words=("has other images than",)),
        Case("undecodable images, and SIGKILL", bad_images, ("weights", "replaced", "log"), words=("undecodable",)),
    ]


def _numbers() -> list[Case]:
    def once(sandbox: Sandbox, _: Reference, dice: random.Random) -> str:
        sandbox.run(faults=f"nan@1:{dice.randrange(2, LAST)}")
        return "left out"

    def stretch(sandbox: Sandbox, _: Reference, dice: random.Random) -> str:
        first = dice.randrange(2, STEPS - 2)
        sandbox.run("--max-skips", 2, "--log-every", 1, faults=f"nan@0:{first} nan@0:{first + 1}")
        return "rewound"

    left_out = "steps are left out on purpose"
    return [
        Case("a NaN in one step", once, ("images", "finite"), left_out, words=("left out 1 steps",)),
        Case("NaNs in two steps in a row", stretch, ("images", "finite"), left_out, words=("went back to",)),
    ]


def _tracking() -> list[Case]:
    def server(status: int | None) -> Callable[..., str]:
        """The undisturbed run has no W&B at all: what it costs must be nothing but the wait of some seconds
        at the end.
        """

        def act(sandbox: Sandbox, _: Reference, dice: random.Random) -> str:
            with serving(status) as address:
                sandbox.run(
                    faults=f"kill@0:{dice.randrange(2, LAST)}",
                    restarts=RESTARTS,
                    env={"WANDB_BASE_URL": address, "WANDB_API_KEY": KEY},
                )
            if KEY in "".join(job.told for job in sandbox.jobs) + (sandbox.out / "run.json").read_text():
                raise Broken("the key was told")
            return "torchrun"

        return act

    kinds = (("refuses", 0), ("hangs", None), ("answers 500", 500), ("revoked the key (401)", 401))
    return [Case(f"W&B's server {name}, and SIGKILL", server(status)) for name, status in kinds]


# ------------------------------------------------------------------------------------------------- looking at processes


def _reach(sandbox: Sandbox, job: Job, step: int) -> None:
    job.until(lambda: max(ledger.read(sandbox.ledger)[0], default=-1) >= step, f"step {step}")


def _goes_on(sandbox: Sandbox, resumed: bool = True) -> str:
    job = sandbox.run()
    if resumed and "resumed" not in job.told:
        raise Broken("began anew instead of going on")
    return "same command"


def _listens(port: int) -> bool:
    wanted = f":{port:04X}"
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return any(fields[1].endswith(wanted) and fields[3] == "0A" for fields in lines)


def _command(number: int) -> str:
    try:
        return Path(f"/proc/{number}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _is_fork(number: int) -> bool:
    """A process that the fork server made: its parent has the same command."""
    if "forkserver" not in (command := _command(number)):
        return False
    parent = int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[1])
    return _command(parent) == command


def said(sandbox: Sandbox, words: tuple[str, ...]) -> list[str]:
    told: Any = "".join(job.told for job in sandbox.jobs)
    return [f"nobody said {word!r}" for word in words if word not in told]
