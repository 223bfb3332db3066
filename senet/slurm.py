"""Scripts for Slurm, complete and quoted, and the few questions asked of Slurm's own commands."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from senet.errors import UsageError

ROOT = Path(__file__).parent.parent
EARLY = 60  # seconds by which Slurm may send a signal before its time


@dataclass(frozen=True)
class Site:
    """What slurm/site.sh says that must be known before a job starts; empty where the cluster decides."""

    partition: str = ""
    account: str = ""
    qos: str = ""
    cpus: str = ""
    data: str = ""
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """What is asked of Slurm."""

    name: str
    out: Path
    site_file: Path
    arguments: tuple[str, ...]  # of the script: config, out, and what follows for launch.train
    nodes: int = 1
    gpus: int = 8  # a node
    processes: int | None = None  # a node without GPUs
    cores: int | None = None  # a process
    time: str = ""
    lead: int = 300  # seconds before its end
    options: tuple[str, ...] = field(default=())  # more of sbatch's
    array: str = ""  # as sbatch takes it; empty is none

    @property
    def ranks(self) -> int:
        return self.nodes * (self.gpus or self.processes or 1)

    @property
    def log(self) -> str:
        """As a pattern of sbatch."""
        folder = str((self.out / "slurm").absolute()).replace("%", "%%")
        return f"{folder}/{'job-%A_%a.log' if self.array else 'job-%j.log'}"


def script(job: Job, command: str) -> str:
    """A script for sbatch that needs nothing but the checkout and its site file. `command`: what it was made by, for
    its reader.
    """
    each = job.gpus or job.processes or 1
    asked = {
        "--job-name": job.name,
        "--nodes": job.nodes,
        "--ntasks-per-node": 1,
        "--gpus-per-node": job.gpus or None,
        "--cpus-per-task": job.cores * each if job.cores else None,
        "--time": job.time,
        "--signal": f"B:USR1@{job.lead}",
        "--array": job.array or None,
        "--output": job.log,
    }
    options = [f"{key}={value}" for key, value in asked.items() if value is not None]
    options += ["--open-mode=append", "--requeue", *job.options]
    lines = [
        "#!/usr/bin/env bash",
        f"# Made by: {' '.join(command.split())}",
        *(f"#SBATCH {_option(option)}" for option in options),
    ]
    settings = {"SENET_ROOT": str(ROOT), "SENET_SITE": str(job.site_file)} | (
        {} if job.gpus else {"PROCS_PER_NODE": str(each)}
    )
    lines += [f"export {name}={shlex.quote(value)}" for name, value in settings.items()]
    lines += [shlex.join(["set", "--", *job.arguments]), "", body("sweep.sbatch" if job.array else "train.sbatch")]
    return "\n".join(lines)


def _option(option: str) -> str:
    """As the first lines of a script take it: sbatch knows double quotes and backslashes there."""
    if "\n" in option:
        raise UsageError(f"{option!r}: sbatch takes no line breaks")
    if re.fullmatch(r"[\w@%+=:,./^*\[\]-]+", option):
        return option
    return '"' + re.sub(r'(["\\])', r"\\\1", option) + '"'


def body(name: str) -> str:
    """A script of slurm/ without the comments at its head, what it sources there put in its place. The site file stays
    outside.
    """
    lines = (ROOT / "slurm" / name).read_text().splitlines()
    while lines and (lines[0].startswith("#") or not lines[0]):
        del lines[0]
    text = []
    for line in lines:
        other = re.fullmatch(r"source slurm/(\S+)", line)
        text.append(body(other[1]) if other else line)
    return "\n".join(text) + "\n"


def seconds(time: str) -> int:
    """Of a time as sbatch takes it: minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM, D-HH:MM:SS. Raises UsageError."""
    form = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time)
    if form is None:
        raise UsageError(f"--time {time}: not a time; write 24:00:00, 2-12 (days-hours) or 90 (minutes)")
    days, *rest = form.groups()
    numbers = [int(part) for part in rest if part is not None]
    units = [3600, 60, 1] if days is not None or len(numbers) == 3 else [60, 1]
    return 86400 * int(days or 0) + sum(number * unit for number, unit in zip(numbers, units, strict=False))


def read_site(file: Path) -> Site:
    """Raises UsageError."""
    if not file.is_file():
        raise UsageError(f"--site {file}: no such file; copy slurm/site.sh and edit it")
    told = 'source "$1" && printf "%s\\0" "$partition" "$account" "$qos" "$cpus" "$data" "${sbatch_options[@]}"'
    command = ["bash", "-c", f"SENET_ROOT=$2; {told}", "site", str(file), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UsageError(f"{file}: bash cannot read it: {' '.join(done.stderr.split())}")
    partition, account, qos, cpus, data, *options = done.stdout.split("\0")[:-1]
    if cpus and not cpus.isdigit():
        raise UsageError(f"{file}: cpus={cpus}: must be a whole number of cores, or empty")
    return Site(partition, account, qos, cpus, data, tuple(option for option in options if option))


# ---------------------------------------------------------------------------------------------------------------- Slurm


def alive(out: Path) -> str | None:
    """`JOB (STATE)` of the job that has, or waits for, a run folder; None when there is none. Raises UsageError."""
    try:
        job = (out / "slurm/job").read_text().strip()
    except OSError:
        return None
    done = subprocess.run(
        ["squeue", "--noheader", "--jobs", job, "--format=%T"], capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        states = sorted(set(done.stdout.split()) - {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"})
        return f"{job} ({', '.join(states)})" if states else None
    if "Invalid job id" in done.stderr:  # long gone
        return None
    raise UsageError(f"squeue does not answer: {' '.join(done.stderr.split())}; try again, or use --dry-run")


def need(commands: Iterable[str]) -> None:
    """Raises UsageError where this machine has no Slurm."""
    for name in commands:
        if shutil.which(name) is None:
            raise UsageError(
                f"no {name} on this machine; submit from a login node of the cluster, or use "
                "--dry-run to see the script"
            )


def send(file: Path) -> str:
    """The id of the job that sbatch makes of a script. Raises UsageError with what sbatch says."""
    done = subprocess.run(["sbatch", "--parsable", str(file)], capture_output=True, text=True, check=False)
    if done.returncode:
        said = " ".join(done.stderr.replace("sbatch: error:", "").split())
        raise UsageError(f"sbatch refuses: {said}; look at {file} and at the site file")
    return done.stdout.strip().partition(";")[0]
