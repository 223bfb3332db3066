"""OUT/log.jsonl: one JSON object a line, the local truth about a run. Steps rise from line to line, whatever
happened.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from senet.system.files import write_text
from senet.track.tracker import Record, Tracker


class JsonLines(Tracker):
    """Appends records to a file. On resume, what was logged after `resume_step` goes: the run will log it again."""

    def __init__(self, path: Path, resume_step: int | None) -> None:
        self.path = path
        if path.exists():
            _rewind(path, resume_step)
        self.file = path.open("a", encoding="utf-8")

    def log(self, record: Record) -> None:
        # JSON has no NaN; a figure that is not finite is null.
        plain = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in record.items()
        }
        self.file.write(json.dumps(plain) + "\n")
        self.file.flush()

    def rewind(self, step: int) -> None:
        self.file.close()
        _rewind(self.path, step)
        self.file = self.path.open("a", encoding="utf-8")

    def close(self, ok: bool) -> None:
        self.file.close()


def last_seconds(path: Path) -> float:
    """Return how long a run had taken when it wrote its last record; 0 for a new log."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return float(json.loads(lines[-1]).get("seconds", 0.0)) if lines else 0.0


def _rewind(path: Path, step: int | None) -> None:
    """Drop what came after `step`, or everything if it is None.

    Events stay: a full disk, a slow rank or gradients that were not finite did happen, and need not happen again. Such
    an event gets the step that the run went back to, so that steps still rise, and keeps its own as `undone_step`.
    """
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if step is not None else ():
        try:
            record = json.loads(line)
        except ValueError:  # torn by a crash
            continue
        if not isinstance(record, dict) or step is None:
            continue
        if record.get("step", 0) > step:
            if record.get("kind") != "event":
                continue
            record = record | {"step": step, "undone_step": record.get("undone_step", record["step"])}
        kept.append(json.dumps(record) + "\n")
    write_text(path, "".join(kept))
