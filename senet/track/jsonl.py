"""OUT/log.jsonl: a JSON object a line, the local truth about a run. Steps rise, whatever happened."""

from __future__ import annotations

import json
import logging
import math
import os
from itertools import takewhile
from pathlib import Path

from senet.system.files import free_name, replace
from senet.track.tracker import Record, Tracker

log = logging.getLogger(__name__)


class JsonLines(Tracker):
    """Appends records to a file. On resume, what was logged after `resume_step` goes: the run will log it again. A log
    of another run stays beside it, under another name.

    A disk that is full does not end the run: what it does not take is written once it does.
    """

    def __init__(self, path: Path, resume_step: int | None) -> None:
        self.path = path
        self._waiting = b""  # what is not in the file
        self._failed = False
        if resume_step is not None:
            self.rewind(resume_step)
        elif path.exists():
            path.rename(free_name(path))

    def log(self, record: Record) -> None:
        # JSON has no NaN; a figure that is not finite is null.
        plain = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in record.items()
        }
        self._waiting += json.dumps(plain).encode() + b"\n"
        try:
            with self.path.open("ab", buffering=0) as file:
                while self._waiting:
                    self._waiting = self._waiting[file.write(self._waiting) :]
        except OSError as error:
            self._rewrite(self._content() + self._waiting, error)  # some file systems cannot append

    def rewind(self, step: int) -> None:
        """Drop what came after `step`.

        Events stay: a full disk, a slow rank or gradients that were not finite did happen, and need not happen again.
        Such an event gets the step that the run went back to, so that steps still rise, and keeps its own as
        `undone_step`.
        """
        lines = (self._content() + self._waiting).splitlines()
        text = b"".join(kept for line in lines if (kept := _rewound(line, step)))
        if not self._rewrite(text):
            # What is shorter has its place on a full disk, too.
            pairs = zip(lines, text.splitlines(), strict=False)
            same = sum(len(line) + 1 for line, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            os.truncate(self.path, same)
            self._waiting = text[same:]

    def _content(self) -> bytes:
        return self.path.read_bytes() if self.path.exists() else b""

    def _rewrite(self, text: bytes, reason: OSError | None = None) -> bool:
        """Replace the file; return whether that succeeded."""
        try:
            replace(self.path, lambda temporary: temporary.write_bytes(text))
            self._waiting = b""
        except OSError as error:
            if not self._failed:
                self._failed = True
                why = reason or error
                log.warning("%s: cannot be written (%s); new lines wait in memory", self.path, why.strerror or why)
            return False
        return True


def last_seconds(path: Path) -> float:
    """Return how long a run had taken when it wrote its last record; 0 for a new log."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return float(json.loads(lines[-1]).get("seconds", 0.0)) if lines else 0.0


def _rewound(line: bytes, step: int) -> bytes:
    """Return what stays of a line after a return to `step`."""
    try:
        record = json.loads(line)
    except ValueError:  # torn by a crash
        return b""
    if not isinstance(record, dict):
        return b""
    if record.get("step", 0) > step:
        if record.get("kind") != "event":
            return b""
        record |= {"step": step, "undone_step": record.get("undone_step", record["step"])}
    return json.dumps(record).encode() + b"\n"
