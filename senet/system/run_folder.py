"""What lies where in a run folder, the --out of a training: every name in it is written here and nowhere else.

Needs the standard library only, for `launch.status` and `launch.submit` answer without torch.
"""

from __future__ import annotations

import math
import time
from pathlib import Path


class RunFolder:
    """The paths in a run folder, which need not exist yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"  # resolved
        self.facts = path / "run.json"  # flags, versions, commit, machine
        self.diff = path / "uncommitted.diff"
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
        self.report = path / "report"  # made by launch.report
        self.slurm = path / "slurm"
        self.slurm_job = self.slurm / "job"

    def __str__(self) -> str:
        return str(self.path)

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

    def newest_step(self) -> int:
        """Return the step of the newest whole checkpoint, from which the next start goes on; 0 if there is none."""
        whole = (path.name for path in self.path.glob("step-*.pt.json"))
        steps = (name.removeprefix("step-").removesuffix(".pt.json") for name in whole)
        return max((int(step) for step in steps if step.isdigit()), default=0)

    def hours_since_timed(self) -> float:
        """Return the age of the newest timed checkpoint by the file system's clock; infinity if there is none."""
        written = max((path.stat().st_mtime for path in self.path.glob("timed-*.pt")), default=-math.inf)
        return (time.time() - written) / 3600


def manifest(checkpoint: Path) -> Path:
    """Return the path of the file that makes a checkpoint whole."""
    return checkpoint.with_name(checkpoint.name + ".json")
