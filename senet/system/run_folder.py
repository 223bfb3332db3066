"""What lies where in a run folder, the --out of a training: every name in it is written here and nowhere else.

Needs the standard library only, for `launch.status` and `launch.submit` answer without torch.
"""

from __future__ import annotations

import math
import re
import time
from pathlib import Path
from typing import Any

from senet.system import seal

NAME = re.compile(r"(step-\d+|timed-\d+|epoch-\d+|best)\.pt")  # of a checkpoint


class RunFolder:
    """The paths in a run folder, which need not exist yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"  # resolved
        self.starts = path / "run.json"  # of each start flags, versions, commit, machine
        self.execution = path / "execution.json"
        self.status = path / "status.json"
        self.log = path / "log.jsonl"
        self.checkpoints = CheckpointFolder(path / "checkpoints")
        self.lock = path / "lock"
        self.stop = path / "stop"  # made by a person to stop the run
        self.health = path / "health"
        self.wandb_id = path / "wandb_id"
        self.wandb_lock = path / "wandb_id.lock"
        self.tensorboard = path / "tensorboard"
        self.examples = path / "examples"  # pictures of the last validation, for trackers
        self.report = path / "report"  # made by launch.report
        self.slurm = path / "slurm"
        self.slurm_job = self.slurm / "job"

    def __str__(self) -> str:
        return str(self.path)

    def documents(self) -> list[Path]:
        """Return the files that say what the run is: how it was started, with which config, classes and code."""
        named = [self.config, self.starts, self.path / "classes.txt", *sorted(self.path.glob("uncommitted-*.diff"))]
        return [path for path in named if path.exists()]

    def sign_of_life(self, rank: int) -> Path:
        return self.health / f"rank-{rank}.json"

    def stacks(self, rank: int) -> Path:
        return self.health / f"stacks-rank-{rank}.txt"

    def nonfinite(self, step: int, rank: int) -> Path:
        """The images of one rank in steps that were left out from `step` on (counted from 1)."""
        return self.path / f"nonfinite-{step:08d}-rank{rank}.json"


class CheckpointFolder:
    """The paths of checkpoints. Those of steps are pruned; best, epoch and timed ones are further names, which stay."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.best = path / "best.pt"

    def of_step(self, step: int) -> Path:
        return self.path / f"step-{step:08d}.pt"

    def of_epoch(self, epoch: int) -> Path:
        return self.path / f"epoch-{epoch:04d}.pt"

    def timed(self, step: int) -> Path:
        return self.path / f"timed-{step:08d}.pt"

    def of_steps(self) -> list[Path]:
        """Return the checkpoints of steps that are there, whole or not, the newest first."""
        return sorted(self.path.glob("step-*.pt"), reverse=True)

    def newest_first(self) -> list[tuple[int, Path]]:
        """Return all checkpoints that a run has written, under whatever name, each after the step that it is of."""
        found = [(step_of(path), path) for path in self.path.glob("*.pt") if NAME.fullmatch(path.name)]
        return sorted(found, key=lambda entry: (entry[0], entry[1].name), reverse=True)

    def temporaries(self) -> list[Path]:
        """Return what writes that were broken off have left behind."""
        return [path for path in self.path.glob("*.tmp") if NAME.fullmatch(path.name.removesuffix(".tmp"))]

    def others(self) -> list[Path]:
        """Return whatever else is in the folder: it could be a checkpoint."""
        return sorted(set(self.path.glob("[!.]*")) - set(self.temporaries()))

    def newest_step(self) -> int:
        """Return the step of the newest checkpoint, from which the next start goes on; 0 if there is none."""
        return next((step for step, path in self.newest_first() if facts_of(path)), 0)

    def hours_since_timed(self) -> float:
        """Return the age of the newest timed checkpoint, by the clock of the host that wrote it; infinity without one.

        The file system's times are not used: they change when a run folder is copied.
        """
        written = max((facts_of(path).get("time", 0.0) for path in self.path.glob("timed-*.pt")), default=-math.inf)
        return max(0.0, (time.time() - written) / 3600)


def facts_of(checkpoint: Path) -> dict[str, Any]:
    """Return the facts in a checkpoint's seal, which is not checked; nothing if there is none."""
    try:
        return seal.facts(checkpoint)
    except (seal.Broken, OSError):
        return {}


def step_of(checkpoint: Path) -> int:
    """Return the step that a checkpoint is of, by its name or by its seal; -1 if neither says it."""
    kind, _, number = checkpoint.stem.partition("-")
    return int(number) if kind in ("step", "timed") else facts_of(checkpoint).get("step", -1)
