"""Where a drill takes place: a run folder, and the processes that train in it, started as a person starts them."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from senet.system import processes
from senet.system.run_folder import RunFolder
from tests.drills import ledger
from tests.helpers import PRELOADED, ROOT, environment, forked, until
from tests.preloaded import Program

CONFIG = ROOT / "configs/debug/drill.yaml"
STEPS, BATCH, LAST = 8, 12, 16  # steps of an epoch, images of a step, steps of the run
LIMIT = 180.0  # seconds that one start may take before a drill counts as failed
RESTARTS = 2  # how often torchrun starts its workers again


@dataclass
class Job:
    """A command that is running, with its output in a file, and the run folder that it writes to."""

    process: Program | subprocess.Popen[bytes]
    log: Path
    out: Path

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self, seconds: float = LIMIT) -> int:
        """Return the exit code of the command. Fails, after it has killed everything, if that takes longer."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill_all()
            pytest.fail(f"still running after {seconds:.0f} s:\n{self.output[-1000:]}")

    def expect(self, code: int) -> None:
        """Wait for the end and fail unless the command ends with this exit code (torchrun makes every failure a 1)."""
        found = self.wait()
        assert found == code, f"exit code {found} instead of {code}:\n{self.output[-2000:]}"

    def until(self, holds: Callable[[], object], what: str) -> None:
        """Wait until `holds()` is true. Fails if the command ends before."""

        def look() -> bool:
            ended = self.process.poll()
            return bool(holds()) or (
                ended is not None and pytest.fail(f"{ended} before {what}:\n{self.output[-1000:]}")
            )

        until(look, what, LIMIT)

    def family(self) -> list[int]:
        """Return the process numbers of the command and of all that it has started."""
        return processes.family(self.process.pid)

    def kill_all(self) -> None:
        """Kill everything at one moment, as a loss of power would: stopped first, so that none answers to a death."""
        family = self.family()
        for number, sign in [(number, sign) for sign in (signal.SIGSTOP, signal.SIGKILL) for number in family]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, sign)
        self.process.wait()


@dataclass
class Sandbox:
    """The folder of one drill. `start` runs `launch.train` in it.

    `undisturbed` is a run that nothing happened to, `stopped` one that is stopped in its second epoch.
    `forked`: its processes are forked from one that has imported what they need, which is quicker.
    """

    folder: Path
    data: Path
    device: str = "cpu"
    ranks: int = 2
    forked: bool = False
    dice: random.Random = field(default_factory=random.Random)
    jobs: list[Job] = field(default_factory=list)
    since: int = 0  # monotonic nanoseconds at which it was brought back, for drills that do not begin with a run
    drawn: int = 0  # the step that was drawn last
    undisturbed: Sandbox | None = None
    stopped: Sandbox | None = None

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def out(self) -> Path:
        return self.folder / "run"

    @property
    def ledger(self) -> Path:
        return self.folder / "ledger"

    @property
    def output(self) -> str:
        """What all jobs have printed."""
        return "".join(job.output for job in self.jobs)

    def draw(self, faults: str) -> str:
        """Draw the steps of a fault string: "{3-8}" becomes one of 3 to 8, and "{+1}" the step after it."""

        def one(match: re.Match[str]) -> str:
            first, last = match.groups()
            self.drawn = self.dice.randint(int(first), int(last)) if first else self.drawn + int(last)
            return str(self.drawn)

        return re.sub(r"\{(?:(\d+)-|\+)(\d+)\}", one, faults)

    def start(
        self,
        *words: object,
        faults: str = "",
        ranks: int | None = None,
        restarts: int = 0,
        often: bool = True,
        port: int = 0,
        env: dict[str, str] | None = None,
    ) -> Job:
        """Start a training and return it.

        `often`: with a checkpoint after every step; otherwise after every second or so, so that some work is repeated.
        `port`: it is one of two nodes with half of the ranks each, whose agents meet at this port.
        """
        train: list[object] = ["--data", self.data, "--out", self.out, "--device", self.device, "--workers", 1]
        train += ["--val-batch", 5, "--log-every", 2, "--keep", 4, "--save-minutes", 0.00001 if often else 0.02]
        train += ["--deterministic"] if self.device == "cuda" else []
        torchrun = ["--standalone", f"--nproc-per-node={ranks or self.ranks}"]
        if port:
            torchrun = ["--nnodes=2", f"--nproc-per-node={self.ranks // 2}", "--rdzv-backend=c10d", "--rdzv-id=drill"]
            torchrun += [f"--rdzv-endpoint=localhost:{port}", "--local-addr=localhost"]
            # Without it an agent that joins late waits in vain for an address that the others have shared (torch 2.14).
            env = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        start = [sys.executable, "-m", "torch.distributed.run", *torchrun, f"--max-restarts={restarts}"]
        start += ["-m", "launch.train", str(CONFIG), *map(str, [*train, *words])]
        settings = environment(SENET_LEDGER=str(self.ledger), SENET_FAULTS=self.draw(faults), **(env or {}))
        log = self.folder / f"start-{len(self.jobs) + 1}.log"
        process: Program | subprocess.Popen[bytes]
        if self.forked:
            process = PRELOADED.start(*forked(start), settings, log, log)
        else:
            with log.open("wb") as output:
                process = subprocess.Popen(
                    start, cwd=ROOT, env=settings, stdout=output, stderr=output, start_new_session=True
                )
        self.jobs.append(Job(process, log, self.out))
        return self.jobs[-1]

    def run(self, *words: object, expect: int = 0, **how: object) -> None:
        """Start a training and wait for its end. Fails if it has another exit code than expected."""
        self.start(*words, **how).expect(expect)  # type: ignore[arg-type]

    def reach(self, job: Job, step: int) -> None:
        """Wait until a job has begun a step."""
        job.until(lambda: max(ledger.read(self.ledger)[0], default=-1) >= step, f"step {step}")

    def newest(self) -> Path:
        """Return the newest finished checkpoint."""
        return RunFolder(self.out).checkpoints.of_steps()[0]

    def close(self) -> None:
        for job in self.jobs:
            if job.process.poll() is None:
                job.kill_all()
