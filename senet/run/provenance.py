"""Where a result came from: versions, code and machine, kept in the run folder and in every checkpoint."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import yaml

from senet.config import Config, to_dict
from senet.data.storage.index import write_classes
from senet.distributed import World
from senet.run import status
from senet.run.flags import Flags
from senet.system.files import write_text
from senet.system.run_folder import RunFolder

PACKAGES = ("torch", "torchvision", "triton", "nvidia-dali-cuda130", "timm", "wandb", "numpy", "pillow")
DRIVER = Path("/proc/driver/nvidia/version")
ROOT = Path(__file__).resolve().parents[2]

log = logging.getLogger(__name__)


@lru_cache
def versions() -> dict[str, str]:
    """Return those of Python and of the packages that results depend on; what is not installed is left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@lru_cache
def code() -> tuple[str, str]:
    """Return the git commit of this code and the diff of what is not committed; empty outside a git checkout."""
    if not (ROOT / ".git").exists():
        return "", ""
    return _git("rev-parse", "HEAD").strip(), _git("diff", "HEAD")


def start(world: World, flags: Flags, step: int) -> dict[str, Any]:
    """Return what is to be known of a start of a run that goes on after a `step`: when, how, with which code, where."""
    gpu = world.device.type == "cuda"
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "step": step,
        "before": _ended(flags.out),
        "command": command(),
        "flags": asdict(flags),
        "ranks": world.size,
        "host": platform.node(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name(world.device) if gpu else "",
        "driver": driver() if gpu else "",
        "slurm_job": os.environ.get("SLURM_JOB_ID", ""),
        "commit": code()[0],
        "diff": _diff_name(),
        "versions": versions(),
    }


def _ended(out: Path) -> str:
    """Return how the start before this one has ended; empty if there was none."""
    last = status.read(out)
    if last is None:
        return ""
    return "killed" if last.state == "running" else last.state + (f": {last.reason}" if last.reason else "")


def command() -> list[str]:
    """Return the command that was typed: of a rank that a launcher started, the launcher's."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        with contextlib.suppress(OSError):
            return os.fsdecode(Path(f"/proc/{os.getppid()}/cmdline").read_bytes()).split("\0")[:-1]
    return sys.orig_argv


def driver(text: str | None = None) -> str:
    """Return the version of NVIDIA's driver by `text`, the content of DRIVER; empty if it does not say."""
    with contextlib.suppress(OSError):
        text = DRIVER.read_text() if text is None else text
    found = re.search(r"Kernel Module\D*(?:x86_64|aarch64)?\s+(\d+\.[\d.]+)", text or "")
    return found[1] if found else ""


def keep(folder: RunFolder, config: Config, classes: Sequence[str], facts: dict[str, Any]) -> None:
    """Write what defines a run into its folder: config, class names, `facts` of this start. Raises OSError."""
    try:
        starts = json.loads(folder.starts.read_text())
    except (OSError, ValueError):
        starts = []
    write_text(folder.config, yaml.safe_dump(to_dict(config), sort_keys=False))
    if classes:
        write_classes(folder.path, classes)
    write_text(folder.starts, json.dumps([*starts, facts], indent=1, default=str))
    if name := _diff_name():
        write_text(folder.path / name, code()[1])


def _diff_name() -> str:
    """Return the name of the file with what is not committed, which may differ from start to start; empty if all is."""
    diff = code()[1]
    return f"uncommitted-{hashlib.sha256(diff.encode()).hexdigest()[:8]}.diff" if diff else ""


def _git(*words: str) -> str:
    # A checkout of another user: git would refuse it, though whoever runs this trusts the code in it already.
    git = ["git", "-C", str(ROOT), "-c", f"safe.directory={ROOT}"]
    try:
        how: dict[str, Any] = {"capture_output": True, "text": True, "errors": "replace", "timeout": 30}
        return str(subprocess.run([*git, *words], check=True, **how).stdout)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        log.warning("%s: git does not tell the commit, which is not recorded: %s", ROOT, said.strip().split("\n")[0])
        return ""
