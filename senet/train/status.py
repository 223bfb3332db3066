"""OUT/status.json: how a run stands, for schedulers and people."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from senet.durable import write_text

STATES = ("running", "stopped", "done", "failed")


def write(out: Path, state: str, step: int, epoch: int, epochs: int, reason: str = "") -> None:
    """`step` counts over the whole run, `epoch` those that are done; `reason` says why it stopped or failed. Raises OSError (disk full)."""
    facts = {"state": state, "step": step, "epoch": epoch, "epochs": epochs, "reason": reason, "time": time.time()}
    write_text(out / "status.json", json.dumps(facts | {"host": socket.gethostname(), "pid": os.getpid()}, indent=1))


def read(out: Path) -> dict[str, Any] | None:
    """What was last written; None where no run has begun, or the file is damaged."""
    try:
        found = json.loads((out / "status.json").read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("state") in STATES else None
