"""Is this machine, or this job's set of machines, fit for training? One line for each thing looked at, with what to do
about it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from senet.config import Config, divide_batch
from senet.data.source import Source, train_loader, val_loader
from senet.distributed import World
from senet.errors import RunError, UsageError
from senet.models import build
from senet.run import preflight, provenance
from senet.track.wandb import decide, key

REQUIREMENTS = Path(__file__).parent.parent / "requirements.txt"
MEGABYTE = 1 << 20
DRIVER_FILE = Path("/proc/driver/nvidia/version")
DRIVERS = {11: 450, 12: 525, 13: 580}  # the oldest driver of each major version of CUDA
SLOW_BUS = {
    "one host": 10.0,
    "several hosts": 1.0,
    "no GPU": 0.02,
}  # GB/s of an all-reduce below which something is set up wrong
PATIENCE = 4.0  # seconds for W&B to answer


class Finding(NamedTuple):
    level: Literal["ok", "warn", "fail"]
    what: str
    said: str  # with the remedy, unless ok


def examine(world: World, config: Config | None, source: Source, out: Path) -> Iterator[Finding]:
    """Everything, in order of how much else depends on it; all ranks take part. Findings are rank 0's, or name the
    rank.
    """
    yield from _packages()
    yield from _devices(world)
    yield from _ranks(world)
    yield _memory(world, config, source)
    yield from _disk(world, config, out)
    if config is not None:
        yield from _data(world, config, source)
    yield wandb_login() if world.is_main else Finding("ok", "W&B", "")


def _remedied(what: str, wrong: str, right: str, level: Literal["warn", "fail"] = "warn") -> Finding:
    """`wrong` where there is something wrong."""
    return Finding(level, what, wrong) if wrong else Finding("ok", what, right)


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
            "ok" if same else "warn",
            name,
            found if same else f"{found}: {wanted} is what was tested; pip install -r requirements.txt",
        )


# -------------------------------------------------------------------------------------------------------------- devices


def _devices(world: World) -> Iterator[Finding]:
    text = DRIVER_FILE.read_text() if DRIVER_FILE.exists() else ""
    if text:
        yield driver(text, {"torch": torch.version.cuda, "DALI": _dali_cuda()}, torch.cuda.is_available())
    if world.device.type == "cpu":
        hidden = bool(text) and not torch.cuda.is_available()
        cores = f"none; training on {len(os.sched_getaffinity(0))} CPU cores"
        broken = (
            "a driver but no usable device; compare nvidia-smi's CUDA version with torch.version.cuda" if hidden else ""
        )
        yield _remedied("GPU", broken, cores, "fail")
        return
    properties = torch.cuda.get_device_properties(world.device)
    told = world.all_gather_object(
        (socket.gethostname(), str(getattr(properties, "uuid", world.rank)), properties.name)
    )
    seen: dict[tuple[str, str], int] = {}
    for rank, (host, identity, name) in enumerate(told):
        if (other := seen.setdefault((host, identity), rank)) != rank:
            yield Finding(
                "fail",
                "GPU",
                f"ranks {other} and {rank} on {host} share one; set --nproc-per-node to the number of GPUs",
            )
            return
        if name != told[0][2]:
            yield Finding(
                "warn",
                "GPU",
                f"rank {rank} on {host} has a {name}, rank 0 a {told[0][2]}; the slower one sets the pace",
            )
            return
    yield Finding("ok", "GPU", f"{world.size} x {properties.name}, {properties.total_memory >> 30} GiB")


def driver(text: str, built_for: dict[str, str | None], usable: bool) -> Finding:
    """`text`: /proc/driver/nvidia/version; `built_for`: the CUDA version of each package; `usable`: torch sees a
    device.
    """
    found = re.search(r"Kernel Module\D*(?:x86_64|aarch64)?\s+((\d+)\.[\d.]+)", text)
    if found is None:
        return Finding(
            "warn", "driver", f"its version cannot be read from {DRIVER_FILE}; nvidia-smi tells it, CUDA 13 needs 580"
        )
    version, major = found[1], int(found[2])
    short = []
    for name, cuda in built_for.items():
        needed = DRIVERS.get(int(cuda.partition(".")[0]), 0) if cuda else 0
        if major < needed:
            short.append(f"{name} is built for CUDA {cuda} and needs {needed}")
    remedy = f"{version}: {'; '.join(short)}: update the driver, or install CUDA's forward compatibility package"
    return _remedied("driver", remedy if short else "", version, "warn" if usable else "fail")


def _dali_cuda() -> str | None:
    for major, package in (("13.0", "nvidia-dali-cuda130"), ("12.0", "nvidia-dali-cuda120")):
        with contextlib.suppress(metadata.PackageNotFoundError):
            metadata.version(package)
            return major
    return None


# ---------------------------------------------------------------------------------------------------------------- ranks


def _ranks(world: World) -> Iterator[Finding]:
    if world.size == 1:
        yield Finding("ok", "ranks", "one; start it with torchrun to look at more")
        return
    told = world.all_gather_object((socket.gethostname(), provenance.versions()))
    hosts = sorted({host for host, _ in told})
    yield Finding(
        "ok", "ranks", f"{world.size} on {len(hosts)} hosts: {', '.join(hosts[:8])}{' ...' if len(hosts) > 8 else ''}"
    )
    others = [
        f"rank {rank} on {host} has {name} {versions.get(name)}, rank 0 {version}; install the same on all nodes"
        for rank, (host, versions) in enumerate(told)
        for name, version in told[0][1].items()
        if versions.get(name) != version
    ]
    yield _remedied("versions", others[0] if others else "", "the same on all ranks", "fail")
    yield _remedied("clocks", preflight.clocks(world), f"within {preflight.CLOCKS:.0f} s of each other")
    yield _all_reduce(world, len(hosts))


def _all_reduce(world: World, hosts: int) -> Finding:
    tensor = torch.ones((64 if world.device.type == "cuda" else 16) * MEGABYTE, device=world.device)
    for _ in range(2):  # connections are made in the first
        world.all_reduce_sum(tensor)
    began, rounds = time.monotonic(), 0
    while rounds < 5:
        world.all_reduce_sum(tensor)
        rounds += 1
    right = float(tensor[0]) == float(world.size) ** (2 + rounds)  # waits for the device
    rate = rounds * tensor.nbytes / (time.monotonic() - began) / 1e9
    bus = rate * 2 * (world.size - 1) / world.size
    prefixes = ("NCCL_", "TORCH_NCCL_") if world.device.type == "cuda" else ("GLOO_",)
    settings = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(prefixes)]
    backend = f"NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}" if world.device.type == "cuda" else "gloo"
    said = f"{rate:.2f} GB/s of gradients, {bus:.2f} on the bus; {', '.join([backend, *settings])}"
    if not right:
        return Finding("fail", "all-reduce", f"gives wrong sums; check the network; {said}")
    kind = "no GPU" if world.device.type == "cpu" else "one host" if hosts == 1 else "several hosts"
    remedy = "NCCL_DEBUG=INFO says which way it goes; NCCL_SOCKET_IFNAME, NCCL_IB_HCA choose"
    if kind == "no GPU":
        remedy = "GLOO_SOCKET_IFNAME chooses the network"
    return _remedied("all-reduce", f"{said}: slow; {remedy}" if bus < SLOW_BUS[kind] else "", said)


# ------------------------------------------------------------------------------------------------------ memory and disk


def _memory(world: World, config: Config | None, source: Source) -> Finding:
    needed = 0
    if config is not None:
        with contextlib.suppress(UsageError):  # said with the data
            needed = preflight.shared_bytes(config, source, divide_batch(config.batch, world.size)[0])
    free = shutil.disk_usage(preflight.SHARED).free / 1e9 if preflight.SHARED.is_dir() else 0.0
    # Whoever has no config in mind may use the PIL backend: a container's usual 64 MB are too few.
    wrong = preflight.shared_memory(world, needed if config is not None else 1 << 30)
    return _remedied("shared memory", wrong, f"{free:.1f} GB free")


def _disk(world: World, config: Config | None, out: Path) -> Iterator[Finding]:
    folder = next(parent for parent in (out.absolute(), *out.absolute().parents) if parent.is_dir())
    file = folder / f".doctor-{world.broadcast_object(os.getpid())}-{world.rank}"
    rate, error = 0.0, None
    try:
        began = time.monotonic()
        with file.open("wb") as target:
            for _ in range(64):
                target.write(os.urandom(MEGABYTE))
            target.flush()
            os.fsync(target.fileno())
        rate = 64 * MEGABYTE / (time.monotonic() - began) / 1e6
    except OSError as failure:
        error = failure.strerror
    try:
        told = world.all_gather_object((socket.gethostname(), error, rate))
        failed = [
            f"rank {rank} on {host} cannot write: {reason}" for rank, (host, reason, _) in enumerate(told) if reason
        ]
        if failed:
            yield Finding("fail", "--out", f"{folder}: {failed[0]}; name another folder, or make room")
            return
        wrong = preflight.seen_by_all(world, file.with_name(file.name.rpartition("-")[0] + "-0"))
    finally:
        file.unlink(missing_ok=True)
    yield _remedied("--out", wrong, f"{folder}: {min(rate for _, _, rate in told):.0f} MB/s", "fail")
    yield _remedied(
        "disk", preflight.disk(folder, _checkpoints(config)), f"{shutil.disk_usage(folder).free / 1e9:.0f} GB free"
    )


def _checkpoints(config: Config | None) -> int:
    """Bytes of the checkpoints that a run keeps; without a config of a large net's."""
    if config is None:
        return 5 << 30
    with torch.device("meta"):
        return 4 * preflight.checkpoint_bytes(build(config.net, config.data.classes))


# ----------------------------------------------------------------------------------------------------------------- data


def _data(world: World, config: Config, source: Source) -> Iterator[Finding]:
    error, prints, counts = "", None, (0, 0)
    try:
        micro_batch, _ = divide_batch(config.batch, world.size)
        val = val_loader(config.data, source, world.rank, world.size, world.device)
        train = train_loader(
            config.data, source, config.batch, micro_batch, config.seed, world.rank, world.size, world.device
        )
        with closing(train.batches(0, 0)) as batches:
            next(batches)
        prints, counts = (train.fingerprint, val.fingerprint), (train.images, val.images)
        train.close()
        val.close()
    except (UsageError, RunError) as refusal:
        error = str(refusal)
    told = world.all_gather_object((socket.gethostname(), error, prints))
    for rank, (host, problem, _) in enumerate(told):
        if problem:
            yield Finding("fail", "--data", f"rank {rank} on {host}: {problem}")
            return
    for rank, (host, _, other) in enumerate(told):
        if other != prints:
            yield Finding(
                "fail",
                "--data",
                f"rank {rank} on {host} has other images than rank 0; copy the same data set to all nodes",
            )
            return
    yield Finding(
        "ok",
        "--data",
        f"{counts[0]} training and {counts[1]} validation images, the same on all ranks; the first batch decodes",
    )


# ------------------------------------------------------------------------------------------------------------------ W&B


def wandb_login() -> Finding:
    """Whether W&B takes the key that a run would use: asked over the network, for some seconds at most."""
    wanted, why = decide("auto")
    said = why.removeprefix("W&B: ")
    login = key()
    if not wanted or os.environ.get("WANDB_MODE", "online") not in ("online", "") or not login:
        return Finding("ok", "W&B", said)
    server = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    proof = base64.b64encode(f"api:{login}".encode()).decode()
    question = urllib.request.Request(  # noqa: S310
        f"{server}/graphql",
        json.dumps({"query": "query { viewer { username } }"}).encode(),
        {"Authorization": f"Basic {proof}", "Content-Type": "application/json"},
    )
    refused = Finding(
        "warn", "W&B", f"{server} refuses the key; wandb login --relogin, or --track none; runs would be kept offline"
    )
    try:
        with urllib.request.urlopen(question, timeout=PATIENCE) as answer:  # noqa: S310
            viewer: Any = (json.loads(answer.read(MEGABYTE)).get("data") or {}).get("viewer")
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return refused
        return Finding(
            "warn", "W&B", f"{server} answers with {error.code}; runs are kept offline, `wandb sync` sends them later"
        )
    except (OSError, ValueError, AttributeError) as error:
        reason = getattr(error, "reason", error)
        return Finding(
            "warn",
            "W&B",
            f"{server} cannot be reached ({reason}); runs are kept offline, `wandb sync` sends them later",
        )
    return Finding("ok", "W&B", f"on, as {viewer.get('username')}") if viewer else refused
