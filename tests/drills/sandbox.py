"""Where a drill takes place: a small data set, run folders, and the processes in them, started as a person
starts them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from senet.prepare.demo import Demo, prepare
from senet.system import processes

ROOT = Path(__file__).resolve().parent.parent.parent
CONFIG = ROOT / "configs/debug/drill.yaml"
LIMIT = 180.0  # seconds that one start may take before a drill counts as failed


class Broken(Exception):
    """The drill itself, or what it looks at, is not as it should be; the message says how."""


class Unable(Exception):
    """A drill that this machine cannot do; the message says why."""


@dataclass
class Job:
    """A command that is running, its output in a file."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def told(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self, seconds: float = LIMIT) -> int:
        """The exit code. Raises Broken, having killed everything, when it takes longer."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill_all()
            raise Broken(f"still running after {seconds:.0f} s; its last words: {self.told[-300:]!r}") from None

    def until(self, ready: Callable[[], object], what: str, seconds: float = LIMIT) -> None:
        """Wait for something to be so. Raises Broken when the command ends before it, or it takes too long."""
        deadline = time.monotonic() + seconds
        while not ready():
            if self.process.poll() is not None:
                raise Broken(f"ended (exit code {self.process.returncode}) before {what}: {self.told[-300:]!r}")
            if time.monotonic() > deadline:
                self.kill_all()
                raise Broken(f"{what}: not in {seconds:.0f} s")
            time.sleep(0.005)

    def family(self) -> list[int]:
        """Process numbers of the command and of all that came from it."""
        return processes.family(self.process.pid)

    def kill_all(self) -> None:
        """At one moment, as a loss of power would: stopped first, so that none can answer the death of another."""
        family = self.family()
        for number, sign in [(number, sign) for sign in (signal.SIGSTOP, signal.SIGKILL) for number in family]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, sign)
        self.process.wait()


@dataclass
class Sandbox:
    """One drill's folder. `start` runs `launch.train` in it."""

    folder: Path
    data: Path
    seed: int
    jobs: list[Job] = field(default_factory=list)
    since: int = 0  # when it was brought back, for drills that do not begin with a run

    @property
    def out(self) -> Path:
        return self.folder / "run"

    @property
    def ledger(self) -> Path:
        return self.folder / "ledger"

    def start(
        self,
        *words: object,
        ranks: int = 2,
        restarts: int = 0,
        faults: str = "",
        often: bool = True,
        data: Path | None = None,
        out: Path | None = None,
        env: dict[str, str] | None = None,
        torchrun: tuple[str, ...] = ("--standalone",),
    ) -> Job:
        """`often`: a checkpoint after every step; else every second or so, so that some work is repeated."""
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            *torchrun,
            f"--nproc-per-node={ranks}",
            f"--max-restarts={restarts}",
            "-m",
            "launch.train",
            str(CONFIG),
            "--data",
            str(data or self.data),
            "--out",
            str(out or self.out),
        ]
        command += ["--device", "cpu", "--workers", "1", "--log-every", "2", "--keep", "4"]
        command += ["--save-minutes", "0.00001" if often else "0.02", *map(str, words)]
        log = self.folder / f"start-{len(self.jobs) + 1}.log"
        settings = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "SENET"))}
        settings |= {
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            "NETRC": os.devnull,
            "SENET_LEDGER": str(self.ledger),
        }
        settings |= {"SENET_FAULTS": faults} | (env or {})
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, cwd=ROOT, env=settings, stdout=output, stderr=output, start_new_session=True
            )
        job = Job(process, log)
        self.jobs.append(job)
        return job

    def node(self, port: int, *words: object, faults: str = "", restarts: int = 3) -> Job:
        """One of two agents of a job on two nodes, with one rank each."""
        torchrun = (
            "--nnodes=2",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint=localhost:{port}",
            "--rdzv-id=drill",
            "--local-addr=localhost",
        )
        # An agent that comes new to a job waits in vain for an address that the others have shared among themselves
        # before (torch 2.14).
        env = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        return self.start(*words, ranks=1, restarts=restarts, faults=faults, env=env, torchrun=torchrun)

    def run(self, *words: object, expect: int = 0, **how: object) -> Job:
        """Start, and wait for the end. Raises Broken for another exit code than expected (torchrun makes every failure
        a 1).
        """
        job = self.start(*words, **how)  # type: ignore[arg-type]
        code = job.wait()
        if code != expect:
            raise Broken(f"exit code {code} instead of {expect}: {job.told[-400:]!r}")
        return job

    def checkpoint(self, step: int) -> Path:
        return self.out / f"checkpoints/step-{step:08d}.pt"

    def newest(self) -> Path:
        """The newest finished checkpoint."""
        return Path(str(max((self.out / "checkpoints").glob("step-*.pt.json"))).removesuffix(".json"))

    def close(self) -> None:
        for job in self.jobs:
            if job.process.poll() is None:
                job.kill_all()


def make_data(folder: Path) -> Path:
    """The demo set's first pictures: 98 for training, so that two are left over, and 50 for validation."""
    prepare(folder, Demo(train=98, val=50))
    return folder


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system of its own. Raises Unable where it cannot be mounted (without root, say)."""
    folder.mkdir(parents=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        raise Unable(f"a small disk cannot be mounted here: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
