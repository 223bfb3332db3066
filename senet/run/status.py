"""OUT/status.json: what a run is doing, or how it ended, for those who start it again. Needs the standard library only.

The exit code of a run does not reach them: torchrun turns every failure of its workers into 1.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from senet.system import seal
from senet.system.files import write_text
from senet.system.run_folder import RunFolder, facts_of

Condition = Literal["running", "stopped", "done", "failed"]
FINAL = ("UsageError", "RunError")  # what only a person can mend: another start would fail alike


@dataclass(frozen=True)
class Status:
    """The state of a run; a killed one says `running` for ever. `reason` is `NameOfError: message`."""

    state: Condition
    step: int
    epoch: int  # whole ones that are done ...
    epochs: int  # ... of so many
    exit_code: int | None = None
    time: str = ""
    reason: str = ""

    @property
    def resumable(self) -> bool:
        """Whether another start could get further."""
        crashed = self.state == "failed" and self.reason.partition(":")[0] not in FINAL
        return crashed or self.state in ("running", "stopped")

    @property
    def at(self) -> str:
        """The time of the last change, for a person."""
        return self.time.replace("T", " ")

    def __str__(self) -> str:
        reason = f": {' '.join(self.reason.split())}" if self.reason else ""
        return f"epoch {self.epoch} of {self.epochs}, {self.time}{reason}"


def word(status: Status) -> str:
    """Return the state in one word: `crashed` for a failure that another start may get over."""
    return "crashed" if status.state == "failed" and status.resumable else status.state


def write(out: Path, status: Status) -> None:
    """Write the status file, whole or not at all, with the time that it is now. Raises OSError."""
    facts = asdict(status) | {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    write_text(RunFolder(out).status, json.dumps(facts))


def read(out: Path) -> Status | None:
    """Return a run folder's status: None if no run has begun, that of a killed run if it cannot be read."""
    file = RunFolder(out).status
    try:
        facts = json.loads(file.read_text())
        known = Status.__dataclass_fields__
        return Status(**{name: value for name, value in facts.items() if name in known})
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return Status("running", 0, 0, 0, reason=f"{file} cannot be read ({error})")


def is_done(out: Path, epochs: int) -> bool:
    """Say whether a run of so many epochs has come to its end, and its last state is there, whole."""
    status, found = read(out), RunFolder(out).checkpoints.newest_first()
    if status is None or (status.state, status.epochs) != ("done", epochs) or not found:
        return False
    try:
        return int(seal.check(found[0][1])["step"]) == status.step
    except (seal.Broken, OSError, KeyError):
        return False


def newest_step(out: Path) -> int:
    """Return the step from which the next start goes on, 0 if there is no whole checkpoint."""
    return RunFolder(out).checkpoints.newest_step()


def best(out: Path) -> float | None:
    """Return the top-1 error in percent of the best checkpoint, None if there is none."""
    return facts_of(RunFolder(out).checkpoints.best).get("top1_error")


def done(out: Path, epochs: int) -> str:
    """Return the last line of a run: what it came to is what its best checkpoint says."""
    folder = RunFolder(out).checkpoints
    best = facts_of(folder.best)
    if "top1_error" not in best:
        return f"done: {epochs} epochs; no {folder.best}"
    errors = f"top-1 error {best['top1_error']:.2f} %, top-5 {best['top5_error']:.2f} % on {best['images']} images"
    return f"done: {epochs} epochs; best {errors} after epoch {best['epoch']}: {folder.best}"
