"""Everything that a GPU can show, in one call of at most so many minutes.

Parts run one by one, the most telling first, each in a process of its own with a time limit: one that crashes, hangs or
is out of memory costs itself. Each leaves OUT/PART.json when it is done; the same command goes on with those that are
missing, then with those that failed. OUT/summary.json, summary.md and PNGs are written at the end of each call, from
all that is there. --tiny does all of it with sizes for any machine, also one without a GPU, to see that it would work.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from senet.bench import kernels, parts, summary
from senet.bench.cifar import train_cifar
from senet.bench.net import choose
from senet.bench.numerics import numerics
from senet.bench.parts import Part, Place, whole
from senet.errors import UsageError
from senet.system.files import write_text

SE50 = "configs/imagenet/se_resnet50.yaml:v1.5"
OTHERS = {  # and images a step
    "se_resnext50": ("configs/imagenet/se_resnext50_32x4d.yaml", 256),
    "se_resnext101": ("configs/imagenet/se_resnext101_32x4d.yaml", 256),
    "senet154": ("configs/imagenet/senet154.yaml", 128),
}
EAGER = ("channels_last", "channels_last+triton")
COMPILED = ("channels_last+analytic+compile", "channels_last+triton+compile")
BOTH = ("channels_last", "contiguous", "channels_last+triton", "contiguous+triton")
GRACE = 15.0  # seconds between the time at which a part is to finish of its own and its end


@dataclass(frozen=True)
class Job:
    """A part, the most seconds it may take, and how few make it worth beginning."""

    work: Part
    limit: float
    least: float = 45.0


def jobs() -> dict[str, Job]:
    """In the order of what they tell."""
    found = {
        "machine": Job(parts.machine, 60, 30),
        "numerics": Job(numerics, 90),
        "net-se_resnet50": Job(whole(SE50, EAGER, ("nvidia", "timm")), 120),
        "compiled-se_resnet50": Job(whole(SE50, COMPILED, ("nvidia", "timm", "timm-compiled")), 240, 90),
        "sync": Job(kernels.sync, 90),
    }
    found |= {
        f"net-{short}": Job(whole(name, BOTH, ("nvidia", "timm"), batch), 150)
        for short, (name, batch) in OTHERS.items()
    }
    found |= {
        "loop": Job(parts.loop, 60),
        "graph": Job(parts.graph, 90),
        "profile": Job(kernels.profiles, 120),
        "grouped": Job(kernels.grouped, 90),
        "loader": Job(parts.loaders, 150),
        "net-cifar": Job(
            whole("configs/cifar10/se_resnet110.yaml", ("channels_last", "contiguous"), ("nvidia",), 1024), 60
        ),
        "compiles": Job(parts.compiles, 120),
    }
    found |= {
        f"compiled-{short}": Job(whole(name, COMPILED, ("timm-compiled",), batch), 240, 90)
        for short, (name, batch) in OTHERS.items()
    }
    return found | {"cifar": Job(train_cifar, 540, 60)}


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where results go, and are looked for")
    parser.add_argument("--minutes", type=float, default=9.0, metavar="M", help="of this call (default 9)")
    parser.add_argument(
        "--parts", nargs="+", choices=list(jobs()), metavar="PART", help=f"only these: {', '.join(jobs())}"
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="CIFAR-10's extracted archive, to train on (default: made-up images)"
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument(
        "--tiny", action="store_true", help="a rehearsal: tiny sizes, a few of each; its numbers mean nothing"
    )
    parser.add_argument("--part", metavar="PART", help=argparse.SUPPRESS)
    parser.add_argument("--left", type=float, help=argparse.SUPPRESS)


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Run what is missing, write the summary, return it. Raises UsageError where there is no GPU, or for results of
    another machine.
    """
    device = choose(args.device)
    if device.type == "cpu" and not args.tiny:
        raise UsageError(
            "gpu: no CUDA device is visible, and these measurements are of one; --tiny tries the parts on this machine"
        )
    if args.part:
        return _work(args, device)
    args.out.mkdir(parents=True, exist_ok=True)
    _same_machine(args.out, device, args.tiny)
    deadline = time.monotonic() + 60 * args.minutes
    wanted = {name: job for name, job in jobs().items() if not args.parts or name in args.parts}
    states = {name: _read(args.out / f"{name}.json") for name in wanted}
    for name in sorted(
        wanted, key=lambda name: states[name] is not None
    ):  # those that failed once come after those never tried
        if (before := states[name]) is not None and before["status"] == "done":
            print(f"{name}: there already", flush=True)
            continue
        left = deadline - time.monotonic() - 10  # for the summary
        if left < (5 if args.tiny else wanted[name].least):
            print(f"{name}: no time left; the same command goes on", flush=True)
            continue
        state = _run(name, wanted[name], args, min(wanted[name].limit, left))
        print(
            f"{name}: {state['status']} after {state['seconds']:.0f} s"
            + (f": {state['error']}" if state["error"] else ""),
            flush=True,
        )
    result = summary.write(args.out, list(jobs()))
    print((args.out / "summary.md").read_text())
    return result


def _work(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """One part, in a process of its own."""
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    place = Place(device, args.out, time.monotonic() + args.left, args.tiny, args.data)
    return jobs()[args.part].work(place)


def _run(name: str, job: Job, args: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Start a part, wait for it, end it when its time is over; what became of it is in OUT/NAME.json."""
    cache = Path(tempfile.gettempdir()) / "senet-bench"  # what is compiled for one part serves the next
    caches = {"TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"), "TRITON_CACHE_DIR": str(cache / "triton")}
    result = args.out / f"{name}.result.json"
    result.unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        "launch.bench",
        "gpu",
        "--out",
        str(args.out),
        "--part",
        name,
        "--json",
        str(result),
    ]
    command += ["--left", str(max(seconds - GRACE, 1.0)), "--device", args.device, *(["--tiny"] if args.tiny else [])]
    command += ["--data", str(args.data)] if args.data else []
    state: dict[str, Any] = {
        "part": name,
        "status": "done",
        "error": None,
        "tiny": args.tiny,
        "torch": torch.__version__,
        "result": None,
    }
    began = time.monotonic()
    with (args.out / f"{name}.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | caches, start_new_session=True)
        try:
            code = process.wait(seconds)
            if code:
                state |= {"status": "failed", "error": f"exit code {code}"}
        except subprocess.TimeoutExpired:
            state |= {"status": "failed", "error": f"ended after {seconds:.0f} s"}
        finally:
            _end(process)
    if state["status"] == "done":
        state["result"] = json.loads(result.read_text())
    else:
        state["log"] = (args.out / f"{name}.log").read_text(errors="replace")[-3000:]
        last = [line for line in state["log"].splitlines() if line.strip()]
        state["error"] += f", {last[-1].strip()[:200]}" if last else ""
    result.unlink(missing_ok=True)
    state["seconds"] = time.monotonic() - began
    if state["status"] == "done" and state["result"].get("unfinished"):
        state |= {"status": "begun", "error": state["result"]["unfinished"]}
    write_text(args.out / f"{name}.json", json.dumps(state, indent=1))
    return state


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a part and whatever it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _read(file: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return found


def _same_machine(out: Path, device: torch.device, tiny: bool) -> None:
    """Results of a rehearsal or of another GPU must not be mixed with these."""
    own = {"device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU", "tiny": tiny}
    file = out / "of.json"
    if file.exists() and (there := json.loads(file.read_text())) != own:
        raise UsageError(
            f"--out {out}: holds results of {there['device']}{', tiny' * there['tiny']}; use another folder"
        )
    file.write_text(json.dumps(own))
