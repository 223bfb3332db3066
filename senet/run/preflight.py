"""What a run is refused for, or warned of, before its first step."""

from __future__ import annotations

import os
import shutil
import socket
import time
from pathlib import Path

from torch import nn

from senet.config import Config
from senet.config import warnings as config_warnings
from senet.data.loader import AHEAD
from senet.data.source import Source, has_dali
from senet.distributed import World
from senet.errors import UsageError
from senet.run import lock, provenance
from senet.run.lock import Lock
from senet.run.saver import SPARE

CLOCKS = 5.0  # seconds apart at which logs no longer fit together
SHARED = Path("/dev/shm")  # noqa: S108


def check_alike(world: World, images: tuple[str, str]) -> list[str]:
    """The ranks' hosts. Raises UsageError, on all, where one sees other images (fingerprints of both sets) or runs
    other versions.
    """
    ranks = world.all_gather_object({"host": socket.gethostname(), "images": images, "versions": provenance.versions()})
    first, *others = ranks
    for rank, other in enumerate(others, start=1):
        for what, remedy in (
            ("images", "copy the same data set to all nodes"),
            ("versions", "install the same on all nodes"),
        ):
            if other[what] != first[what]:
                raise UsageError(
                    f"rank {rank} on {other['host']} has other {what} than rank 0 on {first['host']}: "
                    f"{other[what]}, not {first[what]}; {remedy}"
                )
    return [rank["host"] for rank in ranks]


def claim(world: World, out: Path) -> Lock | None:
    """The lock of the run folder, on the first rank. Raises UsageError on all ranks when another run has it."""
    found = lock.claim(out) if world.is_main else None
    if holder := world.broadcast_object(found if isinstance(found, str) else None):
        raise UsageError(f"--out {out}: in use by {holder}; stop that run (touch {out}/stop), or use another --out")
    return found if isinstance(found, Lock) else None


# ------------------------------------------------------------------------------------------------------------- warnings


def warnings(
    world: World, config: Config, source: Source, out: Path, keep: int, micro_batch: int, net: nn.Module
) -> list[str]:
    """What may end this run later, each with its remedy; on rank 0, after it made `out`. All ranks take part;
    milliseconds.
    """
    found = [
        *config_warnings(config),
        clocks(world),
        shared_memory(world, shared_bytes(config, source, micro_batch)),
        seen_by_all(world, out / "config.yaml"),
    ]
    if world.is_main:
        found.append(disk(out, (keep + 2) * checkpoint_bytes(net)))  # the best, and the one being written
    return [text for text in found if text]


def clocks(world: World) -> str:
    """Which rank's clock is apart from the others'; empty where none is."""
    world.all_gather_object(None)  # all come from one place, and so at one time
    signs = world.all_gather_object((time.time(), socket.gethostname()))
    times = sorted(at for at, _ in signs)
    middle = times[len(times) // 2]
    rank = max(range(len(signs)), key=lambda rank: abs(signs[rank][0] - middle))
    apart = signs[rank][0] - middle
    if abs(apart) < CLOCKS:
        return ""
    ahead = "ahead of" if apart > 0 else "behind"
    return (
        f"the clock of rank {rank} on {signs[rank][1]} is {abs(apart):.0f} s {ahead} the others; set up NTP: "
        "logs will not fit together"
    )


def shared_bytes(config: Config, source: Source, micro_batch: int) -> int:
    """Shared memory that the loaders of one rank take at most: PIL's worker processes hand batches over in it. 0 for
    DALI's threads.
    """
    if config.data.set != "folder" or (source.backend != "pillow" and has_dali()):
        return 0
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    workers = source.workers or max(1, len(os.sched_getaffinity(0)) // local)
    batches = 2 * workers + AHEAD + 1  # torch's workers are two ahead each, and more wait for the device
    return batches * (micro_batch + source.val_batch) * 3 * config.data.crop**2


def shared_memory(world: World, needed: int) -> str:
    """Which rank's machine has too little for `needed` bytes a rank; empty where none has."""
    free = shutil.disk_usage(SHARED).free if SHARED.is_dir() else 0
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    for rank, (host, there, wanted) in enumerate(world.all_gather_object((socket.gethostname(), free, needed * local))):
        if there < wanted:
            return (
                f"rank {rank} on {host}: {there >> 20} MiB of shared memory, PIL's workers may fill "
                f"{wanted >> 20} MiB and die: "
                "docker run --ipc=host or --shm-size=16g, fewer --workers, or --backend dali"
            )
    return ""


def checkpoint_bytes(net: nn.Module) -> int:
    """Of weights and statistics, and of momentum."""
    return sum(part.nbytes for part in net.state_dict().values()) + sum(part.nbytes for part in net.parameters())


def disk(out: Path, needed: int) -> str:
    """What is said where `out`'s disk has less than `needed` bytes; empty where it has them."""
    folder = next(parent for parent in (out.absolute(), *out.absolute().parents) if parent.is_dir())
    free, needed = shutil.disk_usage(folder).free, needed + SPARE
    if free >= needed:
        return ""
    return (
        f"{folder}: {free >> 20} MiB free, the checkpoints kept will take {needed >> 20} MiB; make room, lower "
        "--keep, or use another --out"
    )


def seen_by_all(world: World, file: Path) -> str:
    """Which rank does not see what rank 0 wrote; empty where all do."""
    world.all_gather_object(None)
    there = (
        file.name in os.listdir(file.parent) if file.parent.is_dir() else False
    )  # a listing asks the server, a look may not
    for rank, (host, sees) in enumerate(world.all_gather_object((socket.gethostname(), there))):
        if not sees:
            return (
                f"rank {rank} on {host} does not see {file.parent} as rank 0 does: a run cannot be resumed so; "
                "put --out on storage that "
                "all nodes share"
            )
    return ""
