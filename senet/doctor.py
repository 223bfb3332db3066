"""Is this machine, or this job's set of machines, fit for training? One line for each thing looked at, with what to do about it."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from senet.config import Config, divide_batch
from senet.data import Source, train_loader, val_loader
from senet.errors import UsageError
from senet.track.wandb import decide
from senet.world import World

REQUIREMENTS = Path(__file__).parent.parent / "requirements.txt"
MEGABYTE = 1 << 20


class Finding(NamedTuple):
    level: Literal["ok", "warn", "fail"]
    what: str
    said: str  # with the remedy, unless ok


def examine(world: World, config: Config | None, source: Source, out: Path) -> Iterator[Finding]:
    """Everything, in order of how much else depends on it; all ranks take part. Findings are rank 0's, or name the rank."""
    yield from _packages()
    yield _device(world)
    yield from _ranks(world)
    yield _memory()
    yield _disk(world, out)
    if config is not None:
        yield from _data(world, config, source)
    yield Finding("ok", "W&B", decide("auto")[1].removeprefix("W&B: "))


def _packages() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    fits = (3, 10) <= sys.version_info < (3, 13)
    yield Finding("ok" if fits else "warn", "Python", version if fits else f"{version}: 3.10 to 3.12 are tested")
    for line in REQUIREMENTS.read_text().splitlines():
        name, _, wanted = line.partition(";")[0].strip().partition("==")
        if not wanted or name.startswith("#") or name in ("numpy", "pillow", "tqdm"):
            continue
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            optional = name in ("wandb", "nvidia-dali-cuda130", "timm")
            yield Finding("warn" if optional else "fail", name, "not installed; pip install -r requirements.txt")
            continue
        same = found.partition("+")[0] == wanted
        yield Finding(
            "ok" if same else "warn", name, found if same else f"{found}: {wanted} is what was tested; pip install -r requirements.txt"
        )


def _device(world: World) -> Finding:
    if world.device.type == "cpu":
        there = Path("/proc/driver/nvidia/version").exists()
        if there:
            return Finding("fail", "GPU", "a driver but no usable device; compare nvidia-smi's CUDA version with torch.version.cuda")
        return Finding("ok", "GPU", f"none; training on {os.cpu_count()} CPU cores")
    properties = torch.cuda.get_device_properties(world.device)
    return Finding("ok", "GPU", f"{torch.cuda.device_count()} x {properties.name}, {properties.total_memory >> 30} GiB")


def _ranks(world: World) -> Iterator[Finding]:
    if world.size == 1:
        yield Finding("ok", "ranks", "one; start it with torchrun to look at more")
        return
    signs = world.hear((socket.gethostname(), time.time()))
    hosts = sorted({host for host, _ in signs})
    yield Finding("ok", "ranks", f"{world.size} on {len(hosts)} hosts: {', '.join(hosts[:8])}{' ...' if len(hosts) > 8 else ''}")
    apart = max(at for _, at in signs) - min(at for _, at in signs)
    yield Finding(
        "ok" if apart < 5 else "warn", "clocks", f"{apart:.1f} s apart" + ("" if apart < 5 else "; set up NTP: logs will not fit together")
    )
    tensor = torch.ones(16 * MEGABYTE, device=world.device)
    world.sum(tensor)
    began = time.monotonic()
    for _ in range(5):
        world.sum(tensor)
    right = float(tensor[0]) == world.size**6
    rate = 5 * tensor.nbytes / (time.monotonic() - began) / 1e9
    yield Finding(
        "ok" if right else "fail", "all-reduce", f"{rate:.2f} GB/s of gradients" if right else "gives wrong sums; check the network"
    )


def _memory() -> Finding:
    free = shutil.disk_usage("/dev/shm").free / 1e9 if Path("/dev/shm").is_dir() else 0.0  # noqa: S108
    enough = free > 1
    remedy = "" if enough else "; the PIL backend's workers need more: docker run --ipc=host, or --shm-size=8g"
    return Finding("ok" if enough else "warn", "shared memory", f"{free:.1f} GB free{remedy}")


def _disk(world: World, out: Path) -> Finding:
    folder = next(parent for parent in (out.absolute(), *out.absolute().parents) if parent.is_dir())
    file = folder / f".doctor-{socket.gethostname()}-{world.rank}"
    try:
        began = time.monotonic()
        with file.open("wb") as target:
            for _ in range(64):
                target.write(os.urandom(MEGABYTE))
            target.flush()
            os.fsync(target.fileno())
        rate, error = 64 * MEGABYTE / (time.monotonic() - began) / 1e6, None
    except OSError as failure:
        rate, error = 0.0, failure.strerror
    finally:
        file.unlink(missing_ok=True)
    if failed := [(rank, reason) for rank, reason in enumerate(world.hear(error)) if reason]:
        return Finding("fail", "--out", f"{folder}: rank {failed[0][0]} cannot write: {failed[0][1]}; name another folder")
    free = shutil.disk_usage(folder).free / 1e9
    enough = free > 5
    return Finding(
        "ok" if enough else "warn", "--out", f"{folder}: {rate:.0f} MB/s, {free:.0f} GB free{'' if enough else ', little for checkpoints'}"
    )


def _data(world: World, config: Config, source: Source) -> Iterator[Finding]:
    error, prints, counts = "", None, (0, 0)
    try:
        at_once, _ = divide_batch(config.batch, world.size)
        val = val_loader(config.data, source, world.rank, world.size, world.device)
        train = train_loader(config.data, source, config.batch, at_once, config.seed, world.rank, world.size, world.device)
        with closing(train.batches(0, 0)) as batches:
            next(batches)
        prints, counts = (train.fingerprint, val.fingerprint), (train.images, val.images)
        train.close()
        val.close()
    except UsageError as refusal:
        error = str(refusal)
    told = world.hear((socket.gethostname(), error, prints))
    for rank, (host, problem, _) in enumerate(told):
        if problem:
            yield Finding("fail", "--data", f"rank {rank} on {host}: {problem}")
            return
    for rank, (host, _, other) in enumerate(told):
        if other != prints:
            yield Finding("fail", "--data", f"rank {rank} on {host} has other images than rank 0; copy the same data set to all nodes")
            return
    yield Finding("ok", "--data", f"{counts[0]} training and {counts[1]} validation images, the same on all ranks; the first batch decodes")
