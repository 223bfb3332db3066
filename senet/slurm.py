"""Scripts for Slurm, complete and quoted, and the few questions asked of Slurm's own commands."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

from senet.errors import UsageError
from senet.system.run_folder import RunFolder

ROOT = Path(__file__).parent.parent
EARLY = 60  # seconds by which Slurm may send a signal before its time


@dataclass(frozen=True)
class Site:
    """The variables of slurm/site.sh that must be known before a job starts; an empty one leaves it to the cluster."""

    partition: str = ""
    account: str = ""
    qos: str = ""
    cpus: str = ""  # cores a process
    mem: str = ""  # memory a process
    gpu: str = ""  # as launch.plan names it
    data: str = ""
    options: tuple[str, ...] = ()  # more of sbatch's


@dataclass(frozen=True)
class Job:
    """What is asked of Slurm."""

    name: str
    out: Path
    site_file: Path
    site: Site
    arguments: tuple[str, ...]  # of the script: config, out, and what follows for launch.train
    nodes: int
    gpus: int  # a node; 0: none
    processes: int  # a node
    time: str  # limit of one start
    lead: int  # seconds before that limit at which it is told to save
    array: str = ""  # indices as sbatch takes them; empty: a single job

    @property
    def log(self) -> str:
        """The path of the log, as a pattern of sbatch."""
        folder = str(RunFolder(self.out).slurm.absolute()).replace("%", "%%")
        return f"{folder}/{'job-%A_%a.log' if self.array else 'job-%j.log'}"


def script(job: Job, command: str) -> str:
    """Return a script for sbatch that needs nothing but the checkout and its site file.

    `command`, by which it was made, is told to its reader. Raises UsageError for cpus, memory or options that sbatch
    would not understand.
    """
    site = job.site
    if site.cpus and not site.cpus.isdigit():
        raise UsageError(f"cpus={site.cpus}: not a number of cores, as 8; see slurm/site.sh")
    asked = {
        "job-name": job.name,
        "nodes": job.nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": job.gpus or None,
        "cpus-per-task": int(site.cpus or 0) * job.processes or None,
        "mem": _memory(site.mem, job.processes),
        "time": job.time,
        "signal": f"B:USR1@{job.lead}",
        "array": job.array or None,
        "output": job.log,
        "open-mode": "append",
        "partition": site.partition or None,
        "account": site.account or None,
        "qos": site.qos or None,
    }
    options = [f"--{key}={value}" for key, value in asked.items() if value is not None]
    options += ["--requeue", *site.options]
    settings = {"SENET_ROOT": str(ROOT), "SENET_SITE": str(job.site_file)}
    if not job.gpus:
        settings["PROCS_PER_NODE"] = str(job.processes)
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            f"# Made by: {' '.join(command.split())}",
            *(f"#SBATCH {_quoted(option)}" for option in options),
            *(f"export {name}={shlex.quote(value)}" for name, value in settings.items()),
            shlex.join(["set", "--", *job.arguments]),
            "",
            body("sweep.sbatch" if job.array else "train.sbatch"),
        ]
    )


def _memory(size: str, processes: int) -> str | None:
    """Return the memory of a node whose processes take `size` each; 0 is all that it has."""
    form = re.fullmatch(r"(\d+)([KMGT]?)", size)
    if size and form is None:
        raise UsageError(f"mem={size}: not a size, as 16G, or 0 for all of a node's; see slurm/site.sh")
    return f"{int(form[1]) * processes}{form[2]}" if form else None


def _quoted(option: str) -> str:
    """Quote an option for the head of a script, where sbatch knows double quotes and backslashes."""
    if "\n" in option:
        raise UsageError(f"{option!r}: sbatch takes no line breaks")
    if re.fullmatch(r"[\w@%+=:,./^*\[\]-]+", option):
        return option
    return '"' + re.sub(r'(["\\])', r"\\\1", option) + '"'


def body(name: str) -> str:
    """Return a script of slurm/ without its first comments, and with what it sources, but for the site file."""
    if not (ROOT / "slurm").is_dir():
        raise UsageError(f"{ROOT}: no slurm/ in it: jobs start in a clone of the repository; submit from one")
    lines = (ROOT / "slurm" / name).read_text().splitlines()
    while lines and (lines[0].startswith("#") or not lines[0]):
        del lines[0]
    sourced = (re.fullmatch(r"source slurm/(\S+)", line) for line in lines)
    return "".join(body(other[1]) if other else f"{line}\n" for line, other in zip(lines, sourced, strict=True))


def seconds(time: str) -> int:
    """Return the seconds of a time as sbatch takes it: minutes, MM:SS, HH:MM:SS, D-HH... Raises UsageError."""
    form = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time)
    if form is None:
        raise UsageError(f"--time {time}: not a time; write 24:00:00, 2-12 (days-hours) or 90 (minutes)")
    days, *rest = form.groups()
    numbers = [int(part) for part in rest if part is not None]
    units = [3600, 60, 1] if days is not None or len(numbers) == 3 else [60, 1]
    return 86400 * int(days or 0) + sum(number * unit for number, unit in zip(numbers, units, strict=False))


def read_site(file: Path) -> Site:
    """Read a site file by bash, as the job will. Raises UsageError."""
    if not file.is_file():
        raise UsageError(f"--site {file}: no such file; copy slurm/site.sh and edit it")
    names = [field.name for field in fields(Site) if field.name != "options"]
    values = " ".join(f'"${{{name}-}}"' for name in names)
    show = f'SENET_ROOT=$2; source "$1" && printf "%s\\0" {values} "${{sbatch_options[@]}}"'
    done = subprocess.run(["bash", "-c", show, "site", str(file), str(ROOT)], capture_output=True, text=True)
    if done.returncode:
        raise UsageError(f"{file}: bash cannot read it: {' '.join(done.stderr.split())}")
    found = done.stdout.split("\0")[:-1]
    options = tuple(option for option in found[len(names) :] if option)
    return Site(**dict(zip(names, found, strict=False)), options=options)


# ---------------------------------------------------------------------------------------------------------------- Slurm


def alive(out: Path) -> str | None:
    """Return `JOB (STATE)` of the job that has or waits for a run folder, None if there is none. Raises UsageError."""
    try:
        job = RunFolder(out).slurm_job.read_text().strip()
    except OSError:
        return None
    done = subprocess.run(["squeue", "--noheader", "--jobs", job, "--format=%T"], capture_output=True, text=True)
    if done.returncode == 0:
        states = sorted(set(done.stdout.split()) - {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"})
        return f"{job} ({', '.join(states)})" if states else None
    if "Invalid job id" in done.stderr:  # long gone
        return None
    raise UsageError(f"squeue does not answer: {' '.join(done.stderr.split())}; try again, or use --dry-run")


def need(commands: Iterable[str]) -> None:
    """Raise UsageError if this machine has not got one of Slurm's `commands`."""
    if missing := [name for name in commands if shutil.which(name) is None]:
        raise UsageError(f"no {missing[0]} on this machine; submit from a login node, or see the script by --dry-run")


def send(file: Path) -> str:
    """Return the id of the job that sbatch makes of a script. Raises UsageError with what sbatch says."""
    done = subprocess.run(["sbatch", "--parsable", str(file)], capture_output=True, text=True)
    if done.returncode:
        said = " ".join(done.stderr.replace("sbatch: error:", "").split())
        raise UsageError(f"sbatch refuses: {said}; look at {file} and at the site file")
    return done.stdout.strip().partition(";")[0]
