"""A real Slurm on this machine: munge, a controller and two nodes, in a folder of their own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.helpers import ROOT, environment, until

COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobRequeue=1
GresTypes=gpu
KillWait=20
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n1 NodeAddr=127.0.0.1 NodeHostname={host} Port={first} CPUs=2 RealMemory=1000 Gres=gpu:2
NodeName=n2 NodeAddr=127.0.0.1 NodeHostname={host} Port={second} CPUs=2 RealMemory=1000 Gres=gpu:2
PartitionName=main Nodes=n1,n2 Default=YES State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=n1,n2 State=UP PriorityTier=10 PreemptMode=OFF
"""
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
SITE = """
partition=main account= qos= cpus= data= sbatch_options=(--exclusive)
python={python} host_python=$python container=() srun_options=() numa=node patience=20
enter() {{ export CUDA_VISIBLE_DEVICES=; }}
"""


def _lives(number: str) -> bool:
    """Where nobody collects orphans, the dead stay in the table as zombies."""
    try:
        return (Path("/proc") / number / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Cluster:
    """What a user and an operator of it can do."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.config, self.site = folder, folder / "slurm.conf", folder / "site.sh"
        ports = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
        controller, first, second = (port.getsockname()[1] for port in ports)
        for port in ports:
            port.close()
        host = socket.gethostname().partition(".")[0]
        self.config.write_text(
            CONFIG.format(host=host, folder=folder, controller=controller, first=first, second=second)
        )
        for gpu in range(2):
            (folder / f"gpu{gpu}").symlink_to("/dev/null")  # a device, to be counted
        (folder / "gres.conf").write_text(f"NodeName=n1,n2 Name=gpu File={folder}/gpu[0-1]\n")
        self.site.write_text(SITE.format(python=sys.executable))
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o400)
        (folder / "state").mkdir()
        folder.chmod(0o755)  # munge insists
        self.environment = environment(SLURM_CONF=str(self.config))

    def start(self) -> None:
        place = self.folder
        self.call(
            "munged", "--force", f"--key-file={place}/munge.key",
            f"--socket={place}/munge.socket", f"--pid-file={place}/munged.pid",
            f"--log-file={place}/munged.log", f"--seed-file={place}/munge.seed",
        )  # fmt: skip
        self.call("slurmctld", "-f", self.config)
        for node in ("n1", "n2"):
            self.start_node(node)
        until(
            lambda: self.call("sinfo", "--noheader", "--format=%t", "--partition=main").split() == ["idle"],
            "both nodes are idle",
            30,
        )

    def start_node(self, node: str) -> None:
        (self.folder / node).mkdir(exist_ok=True)
        self.call("slurmd", "-f", self.config, "-N", node)

    def stop(self) -> None:
        try:
            self.clear()
        finally:
            for name in ("slurmd-n1", "slurmd-n2", "slurmctld", "munged"):
                self.end_daemon(name)

    def clear(self) -> None:
        subprocess.run(["scancel", "--user=root"], env=self.environment, capture_output=True, check=False)
        until(lambda: not self.call("squeue", "--noheader"), "all jobs have ended", 40)

    def end_daemon(self, name: str, how: signal.Signals = signal.SIGTERM) -> None:
        file = self.folder / f"{name}.pid"
        if not file.exists() or not (number := file.read_text().strip()):
            return
        with suppress(ProcessLookupError):
            os.kill(int(number), how)
        try:
            until(lambda: not _lives(number), f"{name} has ended", 10)
        except AssertionError:
            os.kill(int(number), signal.SIGKILL)
        file.unlink(missing_ok=True)

    def lose_node(self, node: str) -> None:
        """As in a power cut; the controller is told at once instead of after its SlurmdTimeout."""
        self.end_daemon(f"slurmd-{node}", signal.SIGKILL)
        tasks = self._processes(f"SLURMD_NODENAME={node}")
        for task in list(tasks):
            with suppress(OSError):
                keeper = Path("/proc") / (task / "stat").read_text().rpartition(")")[2].split()[1]
                if (keeper / "comm").read_text().startswith("slurmstepd"):
                    tasks.insert(0, keeper)
        for process in tasks:
            with suppress(ProcessLookupError):
                os.kill(int(process.name), signal.SIGKILL)
        self.control("update", f"nodename={node}", "state=down", "reason=power")

    @contextmanager
    def frozen(self, job: str) -> Iterator[None]:
        """Its ranks get no further in the meantime, however fast they are."""
        own = (f"SLURM_JOB_ID={job}", "TORCHELASTIC_RESTART_COUNT=0")
        self._signal(signal.SIGSTOP, *own)
        try:
            yield
        finally:
            self._signal(signal.SIGCONT, *own)

    def _signal(self, number: signal.Signals, *own: str) -> None:
        for process in self._processes(*own):
            with suppress(ProcessLookupError):
                os.kill(int(process.name), number)

    def _processes(self, *own: str) -> list[Path]:
        """Those of this cluster that have this in their environment."""
        wanted, found = {word.encode() for word in (f"SLURM_CONF={self.config}", *own)}, []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if wanted <= set((process / "environ").read_bytes().split(b"\0")):
                    found.append(process)
        return found

    def bring_back(self, node: str) -> None:
        self.start_node(node)

        def up() -> bool:  # by registering, where the controller has noticed by then that it was away
            subprocess.run(
                ["scontrol", "update", f"nodename={node}", "state=resume"],
                env=self.environment,
                capture_output=True,
                check=False,
            )
            return self.call("sinfo", "--noheader", "--nodes", node, "--partition=main", "--format=%t") in (
                "idle",
                "alloc",
            )

        until(up, f"{node} is back", 30)

    # ------------------------------------------------------------------------------------------------------------- jobs

    def call(self, *words: object) -> str:
        """Run a command from the root of the checkout; what it prints."""
        command, settings = [*map(str, words)], {"cwd": ROOT, "env": self.environment | {"SENET_SITE": str(self.site)}}
        done = subprocess.run(command, **settings, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"{words}: {done.stdout} {done.stderr}"
        return done.stdout.strip()

    def control(self, *words: object) -> str:
        return self.call("scontrol", *words)

    def submit(self, *words: object, **more: str) -> subprocess.CompletedProcess[str]:
        """launch.submit, of one process a node on the CPU where nothing else is said; words after "--" are for the
        training.
        """
        cut = words.index("--") if "--" in words else len(words)
        flags = [*([] if "--gpus" in words else ["--gpus", 0]), "--time", 10, "--lead", 30, "--site", self.site]
        command = [sys.executable, "-m", "launch.submit", *words[:cut], *flags, *words[cut:]]
        return subprocess.run(
            [*map(str, command)],
            cwd=ROOT,
            env=self.environment | more,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def facts(self, job: str) -> dict[str, str]:
        """What Slurm knows of a job: JobState, Restarts, ExitCode ..."""
        return dict(
            word.split("=", 1) for word in self.control("show", "job", "--oneliner", job).split() if "=" in word
        )

    def wait(self, job: str, state: str) -> None:
        def there() -> bool:
            now = self.facts(job)["JobState"]
            assert now == state or now not in ENDED, f"job {job} is {now} and will not be {state}"
            return now == state

        until(there, f"job {job} is {state}")

    def wait_for_end(self, job: str) -> dict[str, str]:
        until(lambda: self.facts(job)["JobState"] in ENDED, f"job {job} has ended")
        return self.facts(job)

    def hasten(self, job: str) -> None:
        """A requeued job would wait for two minutes."""
        self.wait(job, "PENDING")
        time.sleep(2)  # in the second of its end a node still takes its credential for revoked
        self.control("update", f"jobid={job}", "starttime=now")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    missing = [name for name in COMMANDS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)} here: apt-get install munge slurmctld slurmd slurm-client")
    if os.geteuid() != 0:
        pytest.skip("needs root to start a Slurm of its own")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: the path of a socket has at most 107 characters
    cluster = Cluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
