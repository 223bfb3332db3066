"""Submit a training to Slurm: it requeues itself until it is done.

    python -m launch.submit configs/imagenet/se_resnet50.yaml --nodes 2 --gpus 8 --time 24:00:00 --data DIR
    python -m launch.submit configs/ablations/ratio.yaml --array --gpus 8 --time 24:00:00  # a job a variant
    python -m launch.submit CONFIG ... -- --largest-batch 32 --track wandb  # after --: flags of launch.train

Config and batch are checked first; the script goes to OUT/slurm/; slurm/site.sh says the rest about the cluster.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from launch import guard, train
from launch.flags import run_name
from senet import config
from senet.config import divide_batch
from senet.errors import UsageError
from senet.run.changes import check_folder
from senet.run.status import newest_step, read
from senet.slurm import EARLY, ROOT, Job, alive, need, read_site, script, seconds, send


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
        raise UsageError(
            f"{args.out}: job {at_work} is at work in it; wait for its end, or scancel {at_work.partition(' ')[0]}"
        )
    if not job.array if args.array else _done(args.out):
        print(f"{args.out}: finished; nothing to submit (another --out starts anew)")
        return 0
    _submit(args, job, text, command)
    return 0


def _parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="launch.submit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="FILE.yaml or FILE.yaml:VARIANT")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config, as in optim.lr=0.3")
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="default 1")
    parser.add_argument(
        "--gpus", type=int, required=True, metavar="G", help="a node; a process each. 0: train on the CPU"
    )
    parser.add_argument("--procs", type=int, metavar="P", help="processes a node, where --gpus is 0 (default 1)")
    parser.add_argument(
        "--cpus", type=int, metavar="C", help="cores a process (default: the site file's, else the cluster's)"
    )
    parser.add_argument(
        "--time", required=True, help="limit of one start, as 24:00:00; the training may take many of them"
    )
    parser.add_argument(
        "--lead", type=int, default=300, metavar="SECONDS", help="how long before its end a start saves (default 300)"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="data set (default: the site file's)")
    parser.add_argument("--out", type=Path, help="run folder (default: runs/CONFIG)")
    parser.add_argument(
        "--array", action="store_true", help="a job for each variant in the file that is not finished, in OUT/VARIANT"
    )
    parser.add_argument("--at-once", type=int, metavar="K", help="with --array: most jobs that run at a time")
    parser.add_argument("--partition", help="default, as for the next two: the site file's, else the cluster's")
    parser.add_argument("--account")
    parser.add_argument("--qos")
    parser.add_argument(
        "--sbatch", action="append", default=[], metavar="OPTION", help="another option: --sbatch=--constraint=h100"
    )
    parser.add_argument(
        "--site", type=Path, default=ROOT / "slurm/site.sh", metavar="FILE", help="default: slurm/site.sh"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the script; write and submit nothing")
    args = parser.parse_intermixed_args(words)
    if args.nodes < 1 or args.gpus < 0 or min(args.procs or 1, args.cpus or 1, args.at_once or 1, args.lead) < 1:
        parser.error("--nodes, --procs, --cpus, --at-once and --lead must be at least 1, --gpus at least 0")
    if args.procs and args.gpus:
        parser.error("--procs is for --gpus 0; with GPUs there is a process for each")
    if args.at_once and not args.array:
        parser.error("--at-once has no effect without --array")
    args.out = (args.out or Path("runs") / run_name(args.config)).absolute()
    return args


def _job(args: argparse.Namespace, passed: list[str]) -> Job:
    """Raises UsageError for whatever would fail only after the queue."""
    limit = seconds(args.time)
    if limit < 2 * args.lead + EARLY:
        raise UsageError(
            f"--time {args.time}: too short to end {args.lead} s early and still get on; give more "
            "time, or a shorter --lead"
        )
    site = read_site(args.site)
    data = args.data or (Path(site.data) if site.data else None)
    # The script's own `set --` has these: absolute, for it changes to the root of the checkout.
    name = str(Path(args.config).absolute())
    more = [*args.overrides, *(["--data", str(data.absolute())] if data else []), *passed]
    flags = train.parse([args.config, "--out", str(args.out), *more])

    variants = config.variants(args.config) if args.array else [args.config]
    if args.array and variants == [args.config]:
        raise UsageError(f"--array: {args.config} has no variants; leave it out to train this one config")
    cores = args.cpus or (int(site.cpus) if site.cpus else None)
    ranks = args.nodes * (args.gpus or args.procs or 1)
    largest = None if flags.largest_batch == "auto" else flags.largest_batch  # tried out on the GPUs
    for one in variants:
        settings = config.load(one, args.overrides)
        check_folder(settings, _folder(args, one), flags.accept_changes, "-- --accept-changes")
        divide_batch(settings.batch, ranks, largest)
    if data is None and settings.data.set != "synthetic":
        raise UsageError("no data set: give --data DIR, or set data= in the site file")

    asked = {
        "partition": args.partition or site.partition,
        "account": args.account or site.account,
        "qos": args.qos or site.qos,
    }
    return Job(
        name=f"senet-{run_name(args.config)}",
        out=args.out,
        site_file=args.site.absolute(),
        arguments=(name, str(args.out), *more),
        nodes=args.nodes,
        gpus=args.gpus,
        processes=args.procs,
        cores=cores,
        time=args.time,
        lead=args.lead,
        options=(*(f"--{key}={value}" for key, value in asked.items() if value), *site.options, *args.sbatch),
        array=_array(variants, args) if args.array else "",
    )


def _folder(args: argparse.Namespace, config: str) -> Path:
    """The run folder of a config or, in an array, of a variant."""
    out: Path = args.out / config.rpartition(":")[2] if args.array else args.out
    return out


def _array(variants: list[str], args: argparse.Namespace) -> str:
    """The indices of the variants that are not finished."""
    left = [str(index) for index, name in enumerate(variants) if not _done(_folder(args, name))]
    return ",".join(left) + (f"%{args.at_once}" if args.at_once and left else "")


def _done(out: Path) -> bool:
    status = read(out)
    return status is not None and status.state == "done"


def _submit(args: argparse.Namespace, job: Job, text: str, command: str) -> None:
    folder = args.out / "slurm"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / ("sweep.sbatch" if args.array else "train.sbatch")
    file.write_text(text)
    number = send(file)
    (folder / "job").write_text(f"{number}\n")
    log = job.log.replace("%%", "%").replace("%j", number).replace("%A", number).replace("%a", "TASK")
    where = f"{job.nodes} x {job.gpus} GPUs" if job.gpus else f"{job.nodes} x {job.processes or 1} processes on the CPU"
    step = newest_step(args.out)
    more = (f", array {job.array}" if job.array else "") + (f"; goes on from step {step}" if step else "")
    shown = shlex.quote(_short(args.out) + ("/VARIANT" if args.array else ""))
    print(f"job {number}: {where}, time limit {job.time}{more}")
    print(f"  script   {_short(file)}")
    print(f"  log      {_short(Path(log))}")
    print(f"  follow   tail -F {shlex.quote(_short(Path(log)))}")
    print(f"  state    squeue --jobs {number}; python -m launch.status {shown}")
    print(
        f"  stop     scancel --signal=TERM --batch {number}      (it saves; plain scancel gives it the "
        "cluster's KillWait for that)"
    )
    print(f"  resume   {command}")


def _short(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


if __name__ == "__main__":
    guard(main)
