"""What a run is refused for before its first step."""

from __future__ import annotations

import socket
from pathlib import Path

import yaml

from senet import provenance
from senet.config import Config, difference, from_dict
from senet.errors import UsageError
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


def check_folder(config: Config, out: Path) -> None:
    """Refuse a run folder that holds another run. Raises UsageError listing what differs."""
    file = out / "config.yaml"
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: is a file; give a folder")
    if file.exists():
        try:
            old = from_dict(yaml.safe_load(file.read_text()), str(file))
        except yaml.YAMLError:
            raise UsageError(f"{file}: damaged; restore it or use another --out") from None
        check_same(old, config, out)


def check_same(old: Config, new: Config, where: Path) -> None:
    changed = difference(old, new)
    if changed:
        raise UsageError(f"{where} holds a run with another config ({'; '.join(changed)}); use another --out, or the same settings")
