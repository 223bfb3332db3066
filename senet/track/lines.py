"""OUT/log.jsonl: one JSON object a line, the local truth about a run."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class JsonLines:
    """Appends records to a file. On resume, what was logged after `resume_step` goes: the run will log it again, alike."""

    def __init__(self, path: Path, resume_step: int | None) -> None:
        if path.exists():
            _rewind(path, resume_step if resume_step is not None else -1)
        self.file = path.open("a", encoding="utf-8")

    def log(self, record: Mapping[str, Any]) -> None:
        # JSON has no NaN; a figure that is not finite is null.
        plain = {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in record.items()}
        self.file.write(json.dumps(plain) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()


def _rewind(path: Path, step: int) -> None:
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:  # torn by a crash
            continue
        if isinstance(record, dict) and record.get("step", 0) <= step:
            kept.append(line + "\n")
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(kept)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
