"""What a run is refused for, or warned of, before its first step."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import time
from pathlib import Path

from torch import nn

from senet.config import Config
from senet.config import warnings as config_warnings
from senet.data.loader import AHEAD
from senet.data.source import Source
from senet.distributed import World
from senet.errors import UsageError
from senet.run import provenance
from senet.run.saver import SPARE
from senet.system import lock
from senet.system.files import free_bytes
from senet.system.lock import Lock
from senet.system.run_folder import RunFolder

log = logging.getLogger(__name__)

PATIENCE = 20.0  # seconds that a run which is just ending is waited for: the workers of a killed agent first save
WAITING = "%s: in use by %s; waiting for it to end"
CLOCKS = 5.0  # seconds apart at which logs no longer fit together
SHARED = Path("/dev/shm")  # noqa: S108


def check_alike(world: World, images: tuple[str, str]) -> list[str]:
    """Return the hosts of the ranks. Raises UsageError on all of them if one sees other `images` (fingerprints of both
    sets) or runs other versions.
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


def claim(world: World, folder: RunFolder) -> Lock | None:
    """Return the lock of the run folder, on the first rank. Raises UsageError on all ranks if another run has it."""
    found, holder = None, None
    if world.is_main:
        folder.path.mkdir(parents=True, exist_ok=True)
        try:
            found = lock.acquire(folder.lock, PATIENCE, lambda holder: log.info(WAITING, folder, holder))
        except lock.InUse as error:
            holder = str(error)
    if holder := world.broadcast_object(holder):
        raise UsageError(
            f"--out {folder}: in use by {holder}; stop that run (touch {folder.stop}), or use another --out"
        )
    return found


# ------------------------------------------------------------------------------------------------------------- warnings


def warnings(
    world: World, config: Config, source: Source, folder: RunFolder, keep: int, micro_batch: int, net: nn.Module
) -> list[str]:
    """Return what may end this run later, each with its remedy: on all ranks, for the first one to say.

    All ranks call it, after the first one made the folder; it takes milliseconds.
    """
    found = [
        *config_warnings(config),
        clocks(world),
        shared_memory(world, shared_bytes(config, source, micro_batch)),
        seen_by_all(world, folder.config),
    ]
    if world.is_main:
        found.append(disk(folder.path, kept_bytes(net, config, keep)))
    return [text for text in found if text]


def clocks(world: World) -> str:
    """Say which rank's clock is apart from the others'; empty if none is."""
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
    """Return the bytes of shared memory that the loaders of one rank take at most: PIL's worker processes hand batches
    over in it. 0 for DALI's threads.
    """
    if config.data.set != "folder" or source.uses_dali:
        return 0
    batches = 2 * source.workers_per_rank + AHEAD + 1  # workers are two ahead each, and more wait for the device
    return batches * (micro_batch + source.val_batch) * 3 * config.data.crop**2


def shared_memory(world: World, needed: int) -> str:
    """Say which rank's machine has too little for `needed` bytes a rank; empty if none has."""
    free = shutil.disk_usage(SHARED).free if SHARED.is_dir() else 0
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    for rank, (host, there, wanted) in enumerate(world.all_gather_object((socket.gethostname(), free, needed * local))):
        if there < wanted:
            return (
                f"rank {rank} on {host}: {there >> 20} MiB of shared memory, PIL's workers may fill {wanted >> 20} MiB "
                "and die: docker run --ipc=host or --shm-size=16g, fewer --workers, or --backend dali"
            )
    return ""


def checkpoint_bytes(net: nn.Module, ema: bool = False) -> int:
    """Return the size of a checkpoint: weights and statistics of `net`, those of their average if there is one, and a
    momentum for each weight.
    """
    state = sum(part.nbytes for part in net.state_dict().values())
    return state * (1 + ema) + sum(part.nbytes for part in net.parameters())


def kept_bytes(net: nn.Module, config: Config, keep: int) -> int:
    """Return the size of all checkpoints at one time: the `keep` newest, the best, and one being written."""
    return (keep + 2) * checkpoint_bytes(net, config.ema is not None)


def disk(out: Path, needed: int) -> str:
    """Say that the disk of `out` has less than `needed` bytes free; empty if it has them."""
    folder = next(parent for parent in (out.absolute(), *out.absolute().parents) if parent.is_dir())
    free, needed = free_bytes(folder), needed + SPARE
    if free >= needed:
        return ""
    return (
        f"{folder}: {int(free) >> 20} MiB free, the checkpoints kept will take {needed >> 20} MiB; make room, lower "
        "--keep, or use another --out"
    )


def seen_by_all(world: World, file: Path) -> str:
    """Say which rank does not see `file`, which rank 0 wrote; empty if all do."""
    world.all_gather_object(None)
    # A listing asks the server of a shared disk, a look at the file may not.
    there = file.parent.is_dir() and file.name in os.listdir(file.parent)
    for rank, (host, sees) in enumerate(world.all_gather_object((socket.gethostname(), there))):
        if not sees:
            return (
                f"rank {rank} on {host} does not see {file.parent} as rank 0 does: a run cannot be resumed this way; "
                "put --out on storage that all nodes share"
            )
    return ""
