"""In which settings a start may differ from those before it. Imports no torch, for `launch.submit`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from senet.config import Config, difference, from_dict
from senet.data.imagenet import comparable, readable
from senet.errors import UsageError
from senet.system.run_folder import RunFolder

log = logging.getLogger(__name__)

ANOTHER = ("net.", "data.set", "data.classes")  # settings whose change makes it another run
WITHIN_EPOCH = ("batch:", "seed:", "data.augment.repeats", "data.augment.balance")  # decide which images are left


def check_folder(config: Config, out: Path, accept: bool, flag: str = "--accept-changes") -> None:
    """Refuse a run folder that holds a run of another config, unless its changes are to be accepted.

    Raises UsageError that lists what differs and names the `flag` that accepts it.
    """
    file = RunFolder(out).config
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: is a file; give a folder")
    if file.exists():
        try:
            old = from_dict(yaml.safe_load(file.read_text()), str(file))
        except (yaml.YAMLError, UnicodeDecodeError):
            raise UsageError(f"{file}: damaged; restore it or use another --out") from None
        check_same(old, config, out, accept, flag)


def check_same(old: Config, new: Config, where: Path, accept: bool, flag: str = "--accept-changes") -> list[str]:
    """Return the settings in which configs differ. Raises UsageError unless `accept`, always for another net."""
    changed = difference(old, new)
    others = [change for change in changed if change.startswith(ANOTHER)]
    if others and accept:
        raise UsageError(f"{where} holds a run of another net or data set ({'; '.join(others)}); use another --out")
    if changed and not accept:
        differs = f"holds a run with another config ({'; '.join(changed)})"
        raise UsageError(f"{where} {differs}; use another --out, the same settings, or {flag}")
    return changed


def check_within_epoch(changed: list[str], where: Path) -> None:
    """Refuse changes, in the middle of an epoch, of what decides which images it has left. Raises UsageError."""
    if moved := "; ".join(change for change in changed if change.startswith(WITHIN_EPOCH)):
        raise UsageError(f"{where} is in the middle of an epoch, where {moved} cannot change; finish the epoch first")


def check_images(before: tuple[str, str], now: tuple[str, str], root: Path | None, where: Path) -> None:
    """Refuse other images than before, by the fingerprints of the training and of the validation set: UsageError."""
    for kind, was, found in zip(("training", "validation"), before, now, strict=True):
        if was != found:
            other = f"other {kind} images than those {where} was trained with"
            raise UsageError(f"--data {root}: {other}; give them, or another --out")


def check_pixels(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse other classes than before, by UsageError, and warn of validation pixels that are made otherwise."""
    for label, (was, called) in enumerate(zip(before.get("classes", ()), now.get("classes", ()), strict=False)):
        if comparable(was) != comparable(called) and called != str(label):  # ImageNet-V2's folders are numbers
            differs = f"label {label} is {readable(called)!r} here, and was {readable(was)!r} in training"
            remedy = "give the classes of the training (classes.txt says their order)"
            raise UsageError(f"--data: {differs}: other classes, or another order; {remedy}")
    for name, was in before.items():
        if name != "classes" and now.get(name) != was:
            log.warning("other pixels than before: %s was %r, is now %r; results will differ", name, was, now.get(name))
