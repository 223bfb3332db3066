"""What is known before torch, which takes seconds to import, and is told at once."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from senet.config import Config, Folder
from senet.run import changes, status


def check_data(root: Path | None, config: Config | None = None) -> None:
    """Refuse a --data that is no folder, or has no images in it if the config wants files. Raises UsageError."""
    files = config is None or isinstance(config.data, Folder)
    if root is not None and files and not (config is None and root.is_dir()):
        from senet.data.storage.find import splits

        splits(root)


def is_finished(out: Path, config: Config, accept_changes: bool) -> bool:
    """Return whether a run folder holds the end of this very run, and say so.

    Raises UsageError for a folder with a run of another config, unless its changes are to be accepted.
    """
    changes.check_folder(config, out, accept_changes)
    if os.environ.get("WORLD_SIZE", "1") != os.environ.get("LOCAL_WORLD_SIZE", "1"):
        return False  # a disk may not show all nodes the same
    if not status.is_done(out, config.epochs):
        return False
    if os.environ.get("RANK", "0") == "0":
        print(f"{out}: {status.done(out, config.epochs)}", file=sys.stderr)
    return True
