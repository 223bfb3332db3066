"""What can be done to a run: each act does it, brings the run to its end, and returns what brought it back."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from senet.run import status
from tests.drills import damage
from tests.drills.sandbox import BATCH, LAST, LIMIT, RESTARTS, STEPS, Job, Sandbox
from tests.helpers import events, final, lines, until
from tests.preloaded import free_port
from tests.track.server import serving

KEY = "0" * 40  # of nobody's W&B account
Act = Callable[[Sandbox], str]


# ------------------------------------------------------------------------------------------------------- kinds of acts


def restarted(faults: str, *words: object, **how: object) -> Act:
    """Ranks fail by themselves; torchrun starts them again."""

    def act(sandbox: Sandbox) -> str:
        sandbox.run(*words, faults=faults, restarts=RESTARTS, **how)
        return "torchrun"

    return act


def stopped(faults: str, often: bool = True) -> Act:
    """A rank is asked to stop at a certain moment; the same command goes on."""

    def act(sandbox: Sandbox) -> str:
        sandbox.run(faults=faults, expect=1, often=often)
        return goes_on(sandbox)

    return act


def disturbed(harm: Callable[[Job], object], resumes: bool = True, restarts: int = 0) -> Act:
    """Something is done from outside in the midst of a training, which ends it; the same command goes on."""

    def act(sandbox: Sandbox) -> str:
        job = sandbox.start(faults="slow@0:2", often=False, restarts=restarts)
        sandbox.reach(job, 3)
        began = time.monotonic()
        harm(job)
        job.wait()
        assert time.monotonic() - began < 25  # torchrun kills after 30
        return goes_on(sandbox, resumes)

    return act


def survived(harm: Callable[[Job], object], *words: object) -> Act:
    """Something is done from outside in the midst of a training; torchrun starts its ranks again."""

    def act(sandbox: Sandbox) -> str:
        job = sandbox.start(*words, faults="slow@0:2", restarts=RESTARTS)
        sandbox.reach(job, 3)
        harm(job)
        job.expect(0)
        return "torchrun"

    return act


def damaged(harm: Callable[[Path], object]) -> Act:
    """The newest checkpoint of a stopped run is harmed."""

    def act(sandbox: Sandbox) -> str:
        assert sandbox.stopped
        if not sandbox.stopped.jobs:
            sandbox.stopped.run(faults="term@0:11", expect=1)  # in its second epoch
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
            sandbox.run(
                faults="kill@0:{2-15}", restarts=RESTARTS, env={"WANDB_BASE_URL": address, "WANDB_API_KEY": KEY}
            )
        assert KEY not in sandbox.output + (sandbox.out / "run.json").read_text()
        return "torchrun"

    return act


def goes_on(sandbox: Sandbox, resumes: bool = True) -> str:
    sandbox.run()
    assert "resumed" in sandbox.jobs[-1].output or not resumes, "began anew"
    return "same command"


# ------------------------------------------------------------------------------------------ harm done to the processes


def keyboard(job: Job) -> None:
    """Ctrl-C as at a terminal: the whole group gets it, and someone impatient presses again."""
    for _ in range(2):
        os.killpg(job.process.pid, signal.SIGINT)
        time.sleep(0.2)


def term(job: Job) -> None:
    job.process.terminate()


def term_twice(job: Job) -> None:
    job.process.terminate()
    time.sleep(0.3)
    job.process.terminate()


def stop_file(job: Job) -> None:
    (job.out / "stop").touch()
    job.expect(1)
    found = status.read(job.out)
    assert found is not None
    assert (found.state, found.exit_code, found.step < LAST) == ("stopped", 75, True)
    assert not (job.out / "stop").exists()


def kill_agent(job: Job) -> None:
    """Its workers notice, save and end by themselves; a start that comes too early waits for them."""
    job.process.kill()


def freeze(job: Job) -> None:
    """SIGSTOP to a rank: it can say nothing itself, nor end when asked to."""
    ranks = [number for number in job.family() if "launch.train" in argv(number) and number != job.process.pid]
    os.kill(max(ranks), signal.SIGSTOP)


def kill_decoder(job: Job) -> None:
    """SIGKILL to a process that the loader's fork server made: its parent has the same command."""
    forks = [n for n in job.family() if "forkserver" in argv(n) and argv(parent(n)) == argv(n)]
    os.kill(forks[-1], signal.SIGKILL)


def argv(number: int) -> str:
    try:
        return Path(f"/proc/{number}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def parent(number: int) -> int:
    return int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[1])


# ---------------------------------------------------------------------------------------------- acts of their own kind


def starting(sandbox: Sandbox) -> str:
    job = sandbox.start()
    job.until(lambda: len(job.family()) > sandbox.ranks, "its workers are there")
    time.sleep(sandbox.dice.uniform(0.5, 3))
    job.process.terminate()
    job.wait()
    return goes_on(sandbox, resumes=False)


def in_validation(sandbox: Sandbox) -> str:
    """A stop does not wait for the end of the validation, and the epoch is not trained again."""
    sandbox.run(faults=f"term@1:{STEPS}/validate", expect=1)
    assert not lines(sandbox.out, kind="val")
    progress = final(sandbox.out)["progress"]
    assert (progress["epoch"], progress["step"]) == (0, STEPS)
    return goes_on(sandbox)


def two_nodes(sandbox: Sandbox) -> str:
    port = free_port()
    for job in [sandbox.start(port=port, faults="kill@1:9", restarts=3) for _ in range(2)]:
        job.expect(0)
    return "torchrun"


def lost_node(sandbox: Sandbox) -> str:
    """One of two agents is lost with its ranks; the other one waits for it to come back."""
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


def listens(port: int) -> bool:
    tables = [Path(f"/proc/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    fields = [line.split() for table in tables for line in table]
    return any(field[1].endswith(f":{port:04X}") and field[3] == "0A" for field in fields)


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


def full_disk(sandbox: Sandbox) -> str:
    """To the last byte, also for a second start: it costs checkpoints, lines and signs of life, not the run, which says
    at its end that it is not on disk. What was not kept is trained again when there is space.
    """
    (disk := sandbox.folder / "disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(disk)]
    if (done := subprocess.run(mount, capture_output=True, text=True, check=False)).returncode:
        pytest.skip(f"cannot mount a small disk: {done.stderr.strip()}")
    try:
        wandb = {"WANDB_MODE": "offline"}
        words = ("--keep", 100, "--track", "wandb", "--out", disk / "run")
        job = sandbox.start(*words, faults="nan@0:14", restarts=1, env=wandb)
        job.until((disk / "run/checkpoints/step-00000005.pt").exists, "its fifth checkpoint")
        with (disk / "more").open("wb", buffering=0) as filler:

            def ended() -> bool:
                with contextlib.suppress(OSError):
                    while True:  # also what a checkpoint that failed gives back
                        filler.write(bytes(1 << 12))
                return job.process.poll() is not None

            until(ended, "its end", LIMIT)
        job.expect(1)
        assert final(disk / "run")["progress"]["epoch"] < 2
        found = status.read(disk / "run")
        assert found is not None
        assert (found.state != "done", found.resumable) == (True, True)
        (disk / "more").unlink()
        sandbox.run("--out", disk / "run")
        shutil.copytree(disk / "run", sandbox.out)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
    return "same command"


def other_sizes(sandbox: Sandbox) -> str:
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
    sandbox.undisturbed = Sandbox(sandbox.folder / "reference", spoilt, sandbox.device, sandbox.ranks, sandbox.forked)
    sandbox.undisturbed.run()
    return restarted("kill@0:{3-15}")(sandbox)


def one_nan(sandbox: Sandbox) -> str:
    """In the very first step too, when there is no momentum yet; all ranks leave it out, and the images are named."""
    sandbox.run(faults="nan@1:0 nan@1:{3-15}")
    steps = [1, sandbox.drawn + 1]
    for step in steps:
        assert f"left out 1 steps from step {step}: gradients not finite" in sandbox.output
        dumps = [json.loads(file.read_text()) for file in sandbox.out.glob(f"nonfinite-{step:08d}-rank*.json")]
        named = {name for dump in dumps for name in dump["images"][str(step)]}
        assert (len(dumps), len(named)) == (sandbox.ranks, BATCH)
        assert all(Path(name).exists() for name in named)
    assert [(event["skipped"], event["first_skipped"]) for event in events(sandbox.out)] == [
        (1, step) for step in steps
    ]
    return "left out"


def two_nans(sandbox: Sandbox) -> str:
    sandbox.run("--max-skips", 2, "--log-every", 1, faults="nan@0:{2-5} nan@0:{+1}")
    second = sandbox.drawn
    assert "went back to epoch" in sandbox.output
    assert f"leaves out steps {second} to {second + 1}" in sandbox.output
    assert final(sandbox.out)["skipped"] == [[second - 1, second]]
    return "rewound"
