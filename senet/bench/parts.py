"""The parts of the GPU bench. Each runs in a process of its own and yields rows as it has them.

With `tiny` a part does the same with sizes that any machine can hold, to see that it works.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from senet import config
from senet.bench import net, step
from senet.bench.contestants import execution, ours, short, synthetic
from senet.bench.loader import draw_photos
from senet.bench.rows import Row
from senet.config import Config
from senet.data.source import Source, has_dali
from senet.diagnose import speed
from senet.distributed import World
from senet.execution.execution import Execution
from senet.run import provenance
from senet.run.step_plan import StepPlan
from senet.system.run_folder import RunFolder
from senet.system.timing import Effort, Spread, reason, timed, until

ROOT = Path(__file__).resolve().parents[2]
SE50 = "configs/imagenet/se_resnet50.yaml:v1.5"
CIFAR = "configs/cifar10/se_resnet20.yaml"
STOPPED = 75  # exit code of what can be gone on with
# First what tells whether a step waits for the device, then values, kernels, and all others.
TESTS = ("tests/bench/test_on_gpu.py", "tests/train", "tests/execution")


@dataclass(frozen=True)
class Setup:
    """The circumstances of a part."""

    world: World
    out: Path
    deadline: float  # of time.monotonic(): what is not begun by then is left out
    tiny: bool
    data: Path | None = None  # CIFAR-10's archive

    @property
    def gpu(self) -> bool:
        return self.world.device.type == "cuda"

    @property
    def precision(self) -> str:
        return "bf16" if self.gpu else "fp32"

    @property
    def effort(self) -> Effort:
        rounds, seconds, warmup = (2, 0.02, 1) if self.tiny else (5, 0.5, 3)
        return Effort(rounds, seconds, warmup=warmup, deadline=self.deadline)

    def load(self, name: str, batch: int) -> Config:
        """Load a config with noise as its data; if tiny, with one block a stage, few and small images."""
        precision = f"precision={self.precision}"
        if not self.tiny:
            return synthetic(name, precision, batch=batch)
        blocks = len(getattr(config.load(name).net, "blocks", ()))
        return synthetic(name, precision, f"net.blocks={[1] * blocks}", batch=4, crop=32)


Part = Callable[[Setup], Iterator[Row]]


def machine(setup: Setup) -> Iterator[Row]:
    """Name the machine that all is measured on, and measure what it reaches at best."""
    best = net.probe(setup.world.device, setup.precision, 0.05 if setup.tiny else 0.5)
    facts = {**provenance.versions(), "commit": provenance.code()[0][:12] or "unknown"}
    if setup.gpu:
        found = torch.cuda.get_device_properties(setup.world.device)
        facts |= {"CUDA": str(torch.version.cuda), "cuDNN": str(torch.backends.cudnn.version())}
        facts |= {"GiB": f"{found.total_memory / 2**30:.0f}"}
    yield Row(best.name, "copy", Spread.of([best.bandwidth / 1e12]), "TB/s", dict(facts))
    yield Row(best.name, f"{setup.precision} product", Spread.of([best.matmul / 1e12]), "TFLOP/s")


def nets(name: str, hows: Sequence[str], peers: Sequence[str], batch: int, plain: bool = False) -> Part:
    """Return the part that times a net in some executions, the same without SE if `plain`, and the peers, in turns."""

    def part(setup: Setup) -> Iterator[Row]:
        chosen = [execution(how) for how in hows]
        others = peers
        if not setup.gpu:
            chosen = [how for how in chosen if how.tail != "triton" and not how.graph]
        if setup.tiny:  # compiling takes minutes on few cores
            chosen = list(dict.fromkeys(replace(how, compile=False) for how in chosen))[:2]
            others = [peer for peer in peers if peer != "timm-compiled" and name == SE50]
        best = net.probe(setup.world.device, setup.precision, 0.05 if setup.tiny else 0.3)
        yield from net.measure(name, setup.load(name, batch), setup.world, chosen, others, setup.effort, best, plain)

    return part


def tests(setup: Setup) -> Iterator[Row]:
    """Run the tests that need a GPU: no step waits for it, the fused SE tail's values, Triton kernels."""
    command = [sys.executable, "-m", "pytest", "-v", "-m", "gpu", "-p", "no:cacheprovider", "--no-header", *TESTS]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=sys.stderr, text=True)
    assert process.stdout is not None
    counts: dict[str, dict[str, int]] = {}
    for line in process.stdout:
        print(line, end="", file=sys.stderr)
        if match := re.match(r"(\S+::[^\s\[]+)\S* .*?(PASSED|FAILED|ERROR|SKIPPED)", line):
            count = counts.setdefault(match[1], {})
            count[match[2].lower()] = count.get(match[2].lower(), 0) + 1
            bad = count.get("failed", 0) + count.get("error", 0)
            failure = f"{bad} of {sum(count.values())} failed" if bad else None
            yield Row(match[1], ", ".join(count), unit="", facts=dict(count), failure=failure)
    if process.wait() not in (0, 1, 5):  # 1: what failed is in the rows; 5: there are none
        raise SystemExit(f"pytest: exit code {process.returncode}")


def loop(setup: Setup) -> Iterator[Row]:
    """Compare our loop with a bare one on a small net, each fed by a loader of its own."""
    settings = setup.load(CIFAR, 128)
    effort = replace(setup.effort, rounds=3 if setup.tiny else 40, seconds=0.1, steps=1 if setup.tiny else 25)
    for how in ["channels_last", *(["channels_last+analytic+compile"] if setup.gpu else [])]:
        yield from step.compare(short(CIFAR), settings, setup.world, execution(how), effort)


def loaders(setup: Setup) -> Iterator[Row]:
    """Time the way from JPEGs to a trained step: the loader alone, the net alone, both together."""
    crop, batch, images, copies = (32, 4, 12, 1) if setup.tiny else (224, 128, 256, 32)
    blocks = ["net.blocks=[1,1,1,1]"] if setup.tiny else []
    words = [f"data.crop={crop}", f"data.resize={crop + 4}", "data.classes=10", f"batch={batch}", *blocks]
    settings = config.load(SE50, [*words, f"precision={setup.precision}"])
    with tempfile.TemporaryDirectory() as folder:
        photos = draw_photos(Path(folder) / "photos", images)
        for file in list(photos.rglob("*.JPEG")):  # an epoch is to be long: each begins with an empty pipeline
            for number in range(1, copies):
                os.link(file, file.with_name(f"{file.stem}-{number}.JPEG"))
        for backend in (["dali"] if has_dali() else []) + ["pillow"]:
            try:
                with until(setup.deadline):
                    how = StepPlan(Execution(), batch, 1)
                    seconds = 0.1 if setup.tiny else 3.0
                    found = speed.measure(setup.world, settings, Source(photos, backend), how, seconds)
            except Exception as error:
                yield Row(backend, failure=reason(error))
                continue
            ways = {"alone": found.data, "net alone": found.net, "net fed by it": found.together}
            facts = {"batch": batch, "cores busy, %": 100 * found.busy, "waits for data, %": 100 * found.waited}
            yield from (Row(backend, way, Spread.of([batch / taken]), facts=dict(facts)) for way, taken in ways.items())


def profiles(setup: Setup) -> Iterator[Row]:
    """Tell where the time of SE-ResNet-50's step goes, by kernel, in the default execution and in fused ones."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if setup.gpu else [])]
    for how in ["channels_last", *(["channels_last+triton", "channels_last+triton+compile"] if setup.gpu else [])]:
        try:
            with until(setup.deadline):
                work = ours(setup.load(SE50, 256), setup.world, execution(how))
                timed(work, 5)
                with profile(activities=activities) as profiler:
                    seconds, _ = timed(work, 3)
        except Exception as error:
            yield Row(how, failure=reason(error))
            continue
        yield Row(how, "a step", Spread.of([1e3 * seconds]), "ms")
        kernels: dict[str, float] = {}
        for event in profiler.key_averages():
            on_device = str(getattr(event, "device_type", "")).rpartition(".")[2] == "CUDA"
            # An annotation stands for many kernels.
            if setup.gpu == on_device and not getattr(event, "is_user_annotation", False):
                kernels[event.key] = (event.self_device_time_total if setup.gpu else event.self_cpu_time_total) / 3e3
        for name, ms in sorted(kernels.items(), key=lambda item: -item[1])[:15]:
            yield Row(how, name[:80], Spread.of([ms]), "ms", {"share": ms / sum(kernels.values())})


def train_cifar(setup: Setup) -> Iterator[Row]:
    """Train on CIFAR-10 by the real program, which a file stops when time is over and the next call takes up."""
    out = setup.out / "cifar"
    words = [sys.executable, "-m", "launch.train", CIFAR, "--out", str(out), "--device", setup.world.device.type]
    words += ["--track", "none", f"precision={setup.precision}", *(["--graph"] if setup.gpu else [])]
    words += ["epochs=1"] if setup.tiny else []
    if setup.data:
        words += ["--data", str(setup.data)]
    else:
        train, val = (64, 32) if setup.tiny else (50_000, 10_000)
        words += ["data.set=synthetic", "data.classes=10", "data.crop=32", f"data.train_images={train}"]
        words += [f"data.val_images={val}", *(["batch=16"] if setup.tiny else [])]
    RunFolder(out).stop.unlink(missing_ok=True)
    process = subprocess.Popen(words, cwd=ROOT, stdout=sys.stderr, stderr=sys.stderr)
    while process.poll() is None:
        if time.monotonic() > setup.deadline and out.is_dir():
            RunFolder(out).stop.touch()
        time.sleep(0.2)
    log = RunFolder(out).log
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    speeds = [line["images_per_second"] for line in lines if "images_per_second" in line]
    if epochs := [line for line in lines if line["kind"] == "val"]:
        facts = {name: epochs[-1].get(name) for name in ("epoch", "train_top1_error", "top1_error")}
        data = "CIFAR-10" if setup.data else "noise"
        yield Row(short(CIFAR), f"trained on {data}", Spread.of(speeds) if speeds else None, facts=facts)
    if process.returncode:
        raise SystemExit(process.returncode if process.returncode == STOPPED else "launch.train failed, see above")
