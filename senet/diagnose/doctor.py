"""Is this machine, or this job's set of machines, fit for training? `examine` finds out, one line for each thing."""

from __future__ import annotations

import base64
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
from contextlib import closing, suppress
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from packaging.requirements import Requirement

from senet.config import Config, divide_batch
from senet.data.source import Source, train_loader, val_loader
from senet.distributed import World
from senet.errors import RunError, UsageError
from senet.models import build
from senet.run import preflight, provenance
from senet.system.files import sync
from senet.system.timing import timed
from senet.track.wandb import decide, login

REQUIREMENTS = Path(__file__).parents[2] / "requirements.txt"
OPTIONAL = ("wandb", "nvidia-dali-cuda130", "timm", "matplotlib")
MEGABYTE = 1 << 20
DRIVERS = {11: 450, 12: 525, 13: 580}  # the oldest driver of each major version of CUDA
SLOW_BUS = {"one host": 10.0, "several hosts": 1.0, "no GPU": 0.02}  # GB/s of an all-reduce: below, a setting is wrong
PATIENCE = 4.0  # seconds for W&B to answer


class Finding(NamedTuple):
    level: Literal["ok", "warn", "fail"]
    what: str
    text: str  # with the remedy, unless ok


def examine(world: World, config: Config | None, source: Source, out: Path) -> Iterator[Finding]:
    """Yield what was found, in the order of how much else depends on it. All ranks call it, rank 0 shows it."""
    yield from _packages()
    yield from _devices(world)
    yield from _ranks(world)
    yield _memory(world, config, source)
    yield from _disk(world, config, out)
    if config is not None:
        yield _data(world, config, source)
    yield wandb_login() if world.is_main else Finding("ok", "W&B", "")


def _judged(what: str, wrong: str, right: str, level: Literal["warn", "fail"] = "warn") -> Finding:
    """Return a finding of `level` that says what is `wrong`; if nothing is, one that says what is `right`."""
    return Finding(level, what, wrong) if wrong else Finding("ok", what, right)


def _packages() -> Iterator[Finding]:
    python = ".".join(map(str, sys.version_info[:3]))
    fits = (3, 10) <= sys.version_info < (3, 13)
    yield _judged("Python", "" if fits else f"{python}: 3.10 to 3.12 are tested", python)
    # Installed by pip, the package brings the same lines.
    listed = REQUIREMENTS.read_text().splitlines() if REQUIREMENTS.exists() else requires("senet") or []
    lines = (line.partition("#")[0].strip() for line in listed)
    for wanted in (Requirement(line) for line in lines if line):
        if wanted.marker and not wanted.marker.evaluate():
            continue
        try:
            found = version(wanted.name)
        except PackageNotFoundError:
            level: Literal["warn", "fail"] = "warn" if wanted.name in OPTIONAL else "fail"
            yield Finding(level, wanted.name, "not installed; pip install -r requirements.txt")
            continue
        other = f"{found}: {str(wanted.specifier)[2:]} is what was tested; pip install -r requirements.txt"
        yield _judged(wanted.name, "" if wanted.specifier.contains(found.partition("+")[0]) else other, found)


# -------------------------------------------------------------------------------------------------------------- devices


def _devices(world: World) -> Iterator[Finding]:
    if provenance.DRIVER.exists():
        built_for = {"torch": torch.version.cuda, "DALI": _dali_cuda()}
        yield driver(provenance.DRIVER.read_text(), built_for, torch.cuda.is_available())
    if world.device.type == "cpu":
        hidden = provenance.DRIVER.exists() and not torch.cuda.is_available()
        broken = "a driver but no usable device; compare nvidia-smi's CUDA version with torch.version.cuda"
        cores = f"none; training on {len(os.sched_getaffinity(0))} CPU cores"
        yield _judged("GPU", broken if hidden else "", cores, "fail")
        return
    own = torch.cuda.get_device_properties(world.device)
    identity = socket.gethostname(), str(getattr(own, "uuid", world.rank))
    seen: dict[tuple[str, str], str] = {}
    for rank, (there, name) in world.all_gather_named((identity, own.name)).items():
        if (other := seen.setdefault(there, rank)) != rank:
            yield Finding("fail", "GPU", f"{other} and {rank} share one; set --nproc-per-node to the number of GPUs")
            return
        if name != own.name:
            mixed = f"{rank} has a {name}, and rank {world.rank} a {own.name}; the slower one sets the pace"
            yield Finding("warn", "GPU", mixed)
            return
    yield Finding("ok", "GPU", f"{world.size} x {own.name}, {own.total_memory >> 30} GiB")


def driver(text: str, built_for: dict[str, str | None], usable: bool) -> Finding:
    """Judge a driver from `text`, the content of /proc/driver/nvidia/version.

    `built_for` has the CUDA version of each package; `usable` says whether torch sees a device.
    """
    found = provenance.driver(text)
    if not found:
        unread = f"its version cannot be read from {provenance.DRIVER}; nvidia-smi shows it, CUDA 13 needs 580"
        return Finding("warn", "driver", unread)
    short = [
        f"{name} is built for CUDA {cuda} and needs {needed}"
        for name, cuda in built_for.items()
        if cuda and int(found.partition(".")[0]) < (needed := DRIVERS.get(int(cuda.partition(".")[0]), 0))
    ]
    wrong = f"{found}: {'; '.join(short)}: update the driver, or install CUDA's forward compatibility package"
    return _judged("driver", wrong if short else "", found, "warn" if usable else "fail")


def _dali_cuda() -> str | None:
    for cuda in ("13.0", "12.0"):
        with suppress(PackageNotFoundError):
            version(f"nvidia-dali-cuda{cuda.replace('.', '')}")
            return cuda
    return None


# ---------------------------------------------------------------------------------------------------------------- ranks


def _ranks(world: World) -> Iterator[Finding]:
    if world.size == 1:
        yield Finding("ok", "ranks", "one; start it with torchrun to look at more")
        return
    ranks = world.all_gather_named(provenance.versions())
    hosts = sorted({rank.partition(" on ")[2] for rank in ranks})
    shown = ", ".join(hosts[:8]) + (" ..." if len(hosts) > 8 else "")
    yield Finding("ok", "ranks", f"{world.size} on {len(hosts)} hosts: {shown}")
    first = next(iter(ranks.values()))
    others = [
        f"{rank} has {name} {versions.get(name)}, rank 0 {wanted}; install the same on all nodes"
        for rank, versions in ranks.items()
        for name, wanted in first.items()
        if versions.get(name) != wanted
    ]
    yield _judged("versions", others[0] if others else "", "the same on all ranks", "fail")
    yield _judged("clocks", preflight.clocks(world), f"within {preflight.CLOCKS:.0f} s of each other")
    gpu = world.device.type == "cuda"
    found = all_reduce(world, "no GPU" if not gpu else "one host" if len(hosts) == 1 else "several hosts")
    failed = [other for other in world.all_gather_object(found) if other.level == "fail"]
    yield failed[0] if failed else found


def all_reduce(world: World, kind: str, megabytes: int | None = None) -> Finding:
    """Sum a tensor over all ranks: are its values right, and is the network as fast as its `kind` (of SLOW_BUS) can be?

    `megabytes` is its size; None: 256 on GPUs, otherwise 64.
    """
    gpu = world.device.type == "cuda"
    tensor = torch.full(((megabytes or (256 if gpu else 64)) * MEGABYTE // 4,), world.rank + 1.0, device=world.device)
    world.all_reduce_sum(tensor)
    right = bool((tensor == world.size * (world.size + 1) / 2).all())  # exact in float32 up to 5,792 ranks
    tensor.zero_()  # which stays so, however often it is summed
    world.all_reduce_sum(tensor)  # connections are made in the first two
    rate = tensor.nbytes / timed(lambda: world.all_reduce_sum(tensor), 5)[0] / 1e9
    bus = rate * 2 * (world.size - 1) / world.size
    ours = re.compile("(TORCH_)?NCCL_|GLOO_")
    settings = [f"{name}={value}" for name, value in sorted(os.environ.items()) if ours.match(name)]
    backend = f"NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}" if gpu else "gloo"
    text = f"{rate:.2f} GB/s of gradients, {bus:.2f} on the bus; {', '.join([backend, *settings])}"
    if not right:
        return Finding("fail", "all-reduce", f"gives wrong sums; check the network; {text}")
    remedy = "GLOO_SOCKET_IFNAME chooses the network"
    if gpu:
        remedy = "NCCL_DEBUG=INFO says which way it goes; NCCL_SOCKET_IFNAME, NCCL_IB_HCA choose"
    return _judged("all-reduce", f"{text}: slow; {remedy}" if bus < SLOW_BUS[kind] else "", text)


# ------------------------------------------------------------------------------------------------------ memory and disk


def _memory(world: World, config: Config | None, source: Source) -> Finding:
    # Whoever has no config in mind may use the PIL backend: a container's usual 64 MB are too few.
    needed = 1 << 30
    if config is not None:
        with suppress(UsageError):  # which the data will raise again
            needed = preflight.shared_bytes(config, source, divide_batch(config.batch, world.size)[0])
    free = shutil.disk_usage(preflight.SHARED).free / 1e9 if preflight.SHARED.is_dir() else 0.0
    return _judged("shared memory", preflight.shared_memory(world, needed), f"{free:.1f} GB free")


def _disk(world: World, config: Config | None, out: Path) -> Iterator[Finding]:
    folder = next(parent for parent in (out.absolute(), *out.absolute().parents) if parent.is_dir())
    name = f".doctor-{world.broadcast_object(os.getpid())}"
    file, rate, error = folder / f"{name}-{world.rank}", 0.0, None
    try:
        began = time.monotonic()
        try:
            file.write_bytes(os.urandom(64 * MEGABYTE))
            sync(file)
            rate = 64 * MEGABYTE / (time.monotonic() - began) / 1e6
        except OSError as failure:
            error = failure.strerror
        ranks = world.all_gather_named((error, rate))
        for rank, (reason, _) in ranks.items():
            if reason:
                failed = f"{folder}: {rank} cannot write: {reason}; name another folder, or make room"
                yield Finding("fail", "--out", failed)
                return
        unseen = preflight.seen_by_all(world, folder / f"{name}-0")
    finally:
        file.unlink(missing_ok=True)
    yield _judged("--out", unseen, f"{folder}: {min(rate for _, rate in ranks.values()):.0f} MB/s", "fail")
    free = f"{shutil.disk_usage(folder).free / 1e9:.0f} GB free"
    yield _judged("disk", preflight.disk(folder, _checkpoints(config)), free)


def _checkpoints(config: Config | None) -> int:
    """Bytes of the checkpoints that a run keeps; without a config those of a large net."""
    if config is None:
        return 5 << 30
    with torch.device("meta"):
        return 4 * preflight.checkpoint_bytes(build(config.net, config.data.classes), config.ema is not None)


# ----------------------------------------------------------------------------------------------------------------- data


def _data(world: World, config: Config, source: Source) -> Finding:
    """Open both sets and decode the first batch on every rank; do all see the same images?"""
    error, prints, counts = "", None, (0, 0)
    try:
        micro_batch, _ = divide_batch(config.batch, world.size)
        place = (world.rank, world.size, world.device)
        with (
            closing(val_loader(config.data, source, *place)) as val,
            closing(train_loader(config.data, source, config.batch, micro_batch, config.seed, *place)) as train,
            closing(train.batches(0, 0)) as batches,
        ):
            next(batches)
            prints, counts = (train.fingerprint, val.fingerprint), (train.images, val.images)
    except (UsageError, RunError) as refusal:
        error = str(refusal)
    ranks = world.all_gather_named((error, prints))
    wrong = [f"{rank}: {problem}" for rank, (problem, _) in ranks.items() if problem]
    odd = f"has other images than rank {world.rank}; copy the same data set to all nodes"
    wrong += [f"{rank} {odd}" for rank, (_, other) in ranks.items() if other != prints]
    if wrong:
        return Finding("fail", "--data", wrong[0])
    images = f"{counts[0]} training and {counts[1]} validation images"
    return Finding("ok", "--data", f"{images}, the same on all ranks; the first batch decodes")


# ------------------------------------------------------------------------------------------------------------------ W&B


def wandb_login() -> Finding:
    """Ask W&B, for some seconds at most, whether it takes the key that a run would use."""
    wanted, why = decide(asked=False)
    found = login()
    if not wanted or found.mode != "online" or not found.key:
        return Finding("warn" if found.error else "ok", "W&B", why.removeprefix("W&B: "))
    server = found.host
    proof = base64.b64encode(f"api:{found.key}".encode()).decode()
    headers = {"Authorization": f"Basic {proof}", "Content-Type": "application/json"}
    query = json.dumps({"query": "query { viewer { username } }"}).encode()
    question = urllib.request.Request(f"{server}/graphql", query, headers)  # noqa: S310
    later = "runs are kept offline, `wandb sync` sends them later"
    refused = f"{server} refuses the key; wandb login --relogin, or --track none; runs would be kept offline"
    try:
        with urllib.request.urlopen(question, timeout=PATIENCE) as answer:  # noqa: S310
            viewer: Any = (json.loads(answer.read(MEGABYTE)).get("data") or {}).get("viewer")
    except urllib.error.HTTPError as error:
        wrong = refused if error.code in (401, 403) else f"{server} answers with {error.code}; {later}"
        return Finding("warn", "W&B", wrong)
    except (OSError, ValueError, AttributeError) as error:
        return Finding("warn", "W&B", f"{server} cannot be reached ({getattr(error, 'reason', error)}); {later}")
    return _judged("W&B", "" if viewer else refused, f"on, as {viewer.get('username')}" if viewer else "")
