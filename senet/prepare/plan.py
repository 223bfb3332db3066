"""DIR/plan.json: what each split of a prepared set is made of, and whether it is complete.

A killed run leaves a set unfinished but never wrong: the next one finds the plan and goes on with it.
"""

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from senet.data.storage.find import saved_listing, splits
from senet.errors import UsageError
from senet.system.files import write_text

PLAN = "plan.json"
log = logging.getLogger(__name__)


def is_complete(folder: Path, split: str, plan: dict[str, Any]) -> bool:
    """Tell whether `split` is complete in `folder`. Raises UsageError if one of another plan, or of none, is there."""
    known = _read(folder).get(split)
    if known is None:
        if (folder / split).is_dir() and any((folder / split).iterdir()):
            raise UsageError(f"{folder / split}: not empty, and no {PLAN} says what it is; name another folder")
        return False
    if differ := [name for name, value in plan.items() if known.get(name) != value]:
        there = ", ".join(f"{name} {known.get(name)} instead of {plan[name]}" for name in differ)
        raise UsageError(f"{folder}: {split} was begun otherwise ({there}); do the same again, or name another folder")
    # A list out of date says that somebody has added or removed something: look closer.
    return bool(known.get("complete")) and split in splits(folder) and saved_listing(folder, split) is not None


def record(folder: Path, split: str, plan: dict[str, Any], complete: bool = False) -> None:
    """Write down what `split` is made of. What is `complete` is on the disk by then. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    if complete:
        os.sync()  # once: many files synced one by one would take hours
    plans = _read(folder) | {split: plan | {"complete": complete}}
    write_text(folder / PLAN, json.dumps(plans, indent=1) + "\n")


def _read(folder: Path) -> dict[str, Any]:
    try:
        plans = json.loads((folder / PLAN).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError:
        plans = None
    if not isinstance(plans, dict) or not all(isinstance(plan, dict) for plan in plans.values()):
        raise UsageError(f"{folder / PLAN}: damaged; remove {folder} and prepare again")
    return plans


def require_space(folder: Path, needed: int, shrinking: bool) -> None:
    """Raise UsageError if `needed` bytes do not fit; if images are `shrinking`, by nobody knows how much, warn."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free >= needed:
        return
    sizes = f"{needed / 1e9:.1f} GB to write, {free / 1e9:.1f} GB free"
    if not shrinking:
        raise UsageError(f"{folder}: {sizes}; free some space, name another folder, or shrink images with --short-side")
    log.warning("%s: %s before shrinking images; if it is not enough, free some space and run it again", folder, sizes)
