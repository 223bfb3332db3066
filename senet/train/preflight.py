"""What a run is refused for before its first step."""

from __future__ import annotations

import socket
from pathlib import Path

import yaml

from senet import provenance
from senet.config import Config, difference, from_dict
from senet.errors import UsageError
from senet.train import lock
from senet.train.lock import Lock
from senet.world import World


def check_alike(world: World, images: tuple[str, str]) -> None:
    """Refuse ranks that see other images (fingerprints of training and validation) or run other versions. Raises UsageError on all."""
    first, *others = world.hear({"host": socket.gethostname(), "images": images, "versions": provenance.versions()})
    for rank, other in enumerate(others, start=1):
        for what, remedy in (("images", "copy the same data set to all nodes"), ("versions", "install the same on all nodes")):
            if other[what] != first[what]:
                raise UsageError(
                    f"rank {rank} on {other['host']} has other {what} than rank 0 on {first['host']}: "
                    f"{other[what]}, not {first[what]}; {remedy}"
                )


def check_folder(config: Config, out: Path, accept: bool) -> None:
    """Refuse a run folder that holds another run, unless told to `accept` its changes. Raises UsageError listing what differs."""
    file = out / "config.yaml"
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: is a file; give a folder")
    if file.exists():
        try:
            old = from_dict(yaml.safe_load(file.read_text()), str(file))
        except yaml.YAMLError:
            raise UsageError(f"{file}: damaged; restore it or use another --out") from None
        check_same(old, config, out, accept)


def check_same(old: Config, new: Config, where: Path, accept: bool) -> list[str]:
    """The settings in which two configs differ, when told to `accept` them. Raises UsageError otherwise, or when the net is another."""
    changed = difference(old, new)
    others = [change for change in changed if change.startswith(("net.", "data.set", "data.classes"))]
    if others and accept:
        raise UsageError(f"{where} holds a run of another net or data set ({'; '.join(others)}); use another --out")
    if changed and not accept:
        raise UsageError(
            f"{where} holds a run with another config ({'; '.join(changed)}); use another --out, the same settings, or --accept-changes"
        )
    return changed


def check_within_epoch(changed: list[str], where: Path) -> None:
    """Refuse changes, in the middle of an epoch, of what decides which images it has left. Raises UsageError."""
    if moved := [change for change in changed if change.startswith(("batch:", "seed:", "data.augment.repeats", "data.augment.balance"))]:
        raise UsageError(f"{where} is in the middle of an epoch, where {'; '.join(moved)} cannot change; finish the epoch first")


def claim(world: World, out: Path) -> Lock | None:
    """The lock of the run folder, on the first rank. Raises UsageError on all ranks when another run has it."""
    found = lock.claim(out) if world.first else None
    if holder := world.tell(found if isinstance(found, str) else None):
        raise UsageError(f"--out {out}: in use by {holder}; stop that run (touch {out}/stop), or use another --out")
    return found if isinstance(found, Lock) else None
