"""Submit a training to Slurm: it requeues itself until it is done.

    python -m launch.submit configs/imagenet/se_resnet50.yaml --nodes 2 --gpus 8 --time 24:00:00 --data /data/imagenet
    python -m launch.submit configs/ablations/ratio.yaml --array --gpus 8 --time 24:00:00  # a job a variant
    python -m launch.submit CONFIG ... -- --largest-batch 32 --track wandb  # after --: flags of launch.train

Config and batch are checked first; the script goes to OUT/slurm/; slurm/site.sh says the rest about the cluster.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from dataclasses import replace
from pathlib import Path

from launch import guard, train
from launch.flags import Parser, add_config, parse_config, run_name
from senet import config
from senet.config import divide_batch
from senet.errors import UsageError
from senet.run.changes import check_folder
from senet.run.status import newest_step, read
from senet.slurm import EARLY, ROOT, Job, alive, need, read_site, script, seconds, send
from senet.system.run_folder import RunFolder

SITE = ("partition", "account", "qos", "cpus", "mem", "gpu")  # what a flag says before the site file


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    own, passed = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    args = _parse(own)
    job = _job(args, passed)
    command = shlex.join(["python", "-m", "launch.submit", *words])
    text = script(job, command)
    if args.dry_run:
        print(text, end="")
        return 0

    need(("sbatch", "squeue"))
    if at_work := alive(args.out):
        end = f"wait for its end, or scancel {at_work.partition(' ')[0]}"
        raise UsageError(f"{args.out}: job {at_work} is at work in it; {end}")
    if not job.array if args.array else _epochs_done(args.out) == 1:
        print(f"{args.out}: finished; nothing to submit (another --out starts anew)")
        return 0
    _submit(args, job, text, command)
    return 0


def _parse(words: list[str]) -> argparse.Namespace:
    parser = Parser("launch.submit", __doc__)
    add_config(parser)
    add = parser.add_argument
    add("--data", type=Path, metavar="DIR", help="data set, as all nodes see it (default: the site file's)")
    add("--out", type=Path, metavar="DIR", help="run folder (default: runs/CONFIG)")
    add("--dry-run", action="store_true", help="print the script; write and submit nothing")
    add = parser.add_argument_group("the job").add_argument
    add("--nodes", type=int, default=1, metavar="N", help="machines")
    add("--gpus", type=int, required=True, metavar="G", help="a node, with a process for each; 0: train on the CPU")
    add("--procs", type=int, metavar="P", help="processes a node, if --gpus is 0 (default: 1)")
    add("--time", required=True, help="limit of one start, as 24:00:00; the training may take many of them")
    add("--lead", type=int, default=300, metavar="S", help="seconds before that limit at which it saves")
    add("--array", action="store_true", help="a job for each unfinished variant in the file, in OUT/VARIANT")
    add("--at-once", type=int, metavar="K", help="with --array: most jobs that run at a time (default: all)")
    add = parser.add_argument_group("the cluster (default: the site file's, otherwise the cluster's)").add_argument
    add("--partition", metavar="NAME")
    add("--account", metavar="NAME")
    add("--qos", metavar="NAME")
    add("--cpus", metavar="C", help="cores a process")
    add("--mem", metavar="SIZE", help="memory a process, as 16G; 0: all of a node's")
    add("--gpu", metavar="NAME", help="the GPUs' name for launch.plan, as h100: says how many starts it will take")
    add("--sbatch", action="append", default=[], metavar="OPTION", help="one more: --sbatch=--constraint=h100")
    add("--site", type=Path, default=ROOT / "slurm/site.sh", metavar="FILE", help="(default: slurm/site.sh)")
    args = parse_config(parser, words)
    if args.nodes < 1 or args.gpus < 0 or min(args.procs or 1, args.at_once or 1, args.lead) < 1:
        parser.error("--nodes, --procs, --at-once and --lead must be at least 1, --gpus at least 0")
    if args.procs and args.gpus:
        parser.error("--procs is for --gpus 0; with GPUs there is a process for each")
    if args.at_once and not args.array:
        parser.error("--at-once has no effect without --array")
    args.out = (args.out or Path("runs") / run_name(args.config)).absolute()
    return args


def _job(args: argparse.Namespace, passed: list[str]) -> Job:
    """Return the job that the flags describe. Raises UsageError for whatever would fail only after the queue."""
    if seconds(args.time) < 2 * args.lead + EARLY:
        short = f"too short to end {args.lead} s early and still get on"
        raise UsageError(f"--time {args.time}: {short}; give more time, or a shorter --lead")
    site = read_site(args.site)
    site = replace(site, **{name: value for name in SITE if (value := getattr(args, name)) is not None})
    site = replace(site, options=(*site.options, *args.sbatch))
    args.data = _data(args.data, site.data)
    # The script changes to the root of the checkout: paths are absolute.
    name = str(Path(args.config).absolute())
    more = [*args.overrides, *(["--data", args.data] if args.data else []), *passed]
    flags = train.parse([args.config, "--out", str(args.out), *more])
    if flags.init and not flags.init.startswith("timm:"):
        more += ["--init", str(Path(flags.init).absolute())]

    variants = config.variants(args.config) if args.array else [args.config]
    if args.array and variants == [args.config]:
        raise UsageError(f"--array: {args.config} has no variants; leave it out to train this one config")
    processes = args.gpus or args.procs or 1
    largest = None if flags.largest_batch == "auto" else flags.largest_batch  # tried out on the GPUs
    for one in variants:
        settings = config.load(one, args.overrides)
        check_folder(settings, _folder(args, one), flags.accept_changes, "-- --accept-changes")
        divide_batch(settings.batch, args.nodes * processes, largest)
    if not args.data and settings.data.set != "synthetic":
        raise UsageError("no data set: give --data DIR, or set data= in the site file")
    left = [str(index) for index, one in enumerate(variants) if _epochs_done(_folder(args, one)) < 1]
    return Job(
        name=f"senet-{run_name(args.config)}",
        out=args.out,
        site_file=args.site.absolute(),
        site=site,
        arguments=(name, str(args.out), *more),
        nodes=args.nodes,
        gpus=args.gpus,
        processes=processes,
        time=args.time,
        lead=args.lead,
        array=",".join(left) + (f"%{args.at_once}" if args.at_once and left else "") if args.array else "",
    )


def _data(given: Path | None, of_site: str) -> str:
    """Return the data set's path for the nodes. A relative one must be here, an absolute one may be theirs alone."""
    if given is None:
        if of_site and not Path(of_site).is_absolute():
            raise UsageError(f"data={of_site} in the site file: give an absolute path")
        return of_site
    path = given.absolute()
    if not path.exists():
        if not given.is_absolute():
            raise UsageError(f"--data {given}: there is no {path}; give the path that all nodes see")
        print(f"warning: --data {path}: not on this machine; all nodes of the job need it there", file=sys.stderr)
    return str(path)


def _folder(args: argparse.Namespace, config: str) -> Path:
    """Return the run folder of a config or, in an array, of a variant."""
    out: Path = args.out / config.rpartition(":")[2] if args.array else args.out
    return out


def _epochs_done(out: Path) -> float:
    """Return the share of its epochs that a run has done, 1 if it is finished."""
    status = read(out)
    return 0 if status is None else 1 if status.state == "done" else min(status.epoch / max(status.epochs, 1), 0.999)


def _submit(args: argparse.Namespace, job: Job, text: str, command: str) -> None:
    folder = RunFolder(args.out)
    folder.slurm.mkdir(parents=True, exist_ok=True)
    file = folder.slurm / ("sweep.sbatch" if args.array else "train.sbatch")
    file.write_text(text)
    number = send(file)
    folder.slurm_job.write_text(f"{number}\n")
    log = job.log.replace("%%", "%").replace("%j", number).replace("%A", number).replace("%a", "TASK")
    where = f"{job.nodes} x {job.gpus} GPUs" if job.gpus else f"{job.nodes} x {job.processes} processes on the CPU"
    step = newest_step(args.out)
    more = (f", array {job.array}" if job.array else "") + (f"; goes on from step {step}" if step else "")
    rows = {
        "data": args.data,
        "starts": _starts(args, job) if job.site.gpu and job.gpus and not args.array else "",
        "script": _short(file),
        "log": _short(Path(log)),
        "follow": f"tail -F {shlex.quote(_short(Path(log)))}",
        "state": f"squeue --jobs {number}; python -m launch.status {shlex.quote(_short(args.out))}",
        "stop": f"scancel --signal=TERM --batch {number}  (it saves; plain scancel gives it the cluster's KillWait)",
        "resume": command,
    }
    print(f"job {number}: {where}, time limit {job.time}{more}")
    print("\n".join(f"  {label:9}{text}" for label, text in rows.items() if text))


def _starts(args: argparse.Namespace, job: Job) -> str:
    """Say how many starts the rest of the training will take by launch.plan's reckoning."""
    from senet.plan.planner import RESTART, Plan, Request

    try:
        wish = Request(gpus=job.nodes * job.gpus, gpu=job.site.gpu.lower(), per_node=job.gpus)
        hours = Plan(config.load(args.config, args.overrides), wish).hours * (1 - _epochs_done(args.out))
    except UsageError as unknown:
        return f"not known: {unknown}"
    each = (seconds(job.time) - job.lead - RESTART) / 3600
    return f"about {max(1, math.ceil(hours / each))}: {hours:.1f} hours on {job.site.gpu} are left, by launch.plan"


def _short(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


if __name__ == "__main__":
    guard(main)
