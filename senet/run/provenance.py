"""Where a result came from: versions, code and machine, kept in the run folder and in every checkpoint."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

PACKAGES = ("torch", "torchvision", "triton", "nvidia-dali-cuda130", "timm", "wandb", "numpy", "pillow")
ROOT = Path(__file__).resolve().parent.parent


def versions() -> dict[str, str]:
    """Of Python and the packages that results depend on; what is not installed is left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def code() -> tuple[str, str]:
    """The git commit of this code and the diff of what is not committed; empty outside a git checkout."""
    return _git("rev-parse", "HEAD").strip(), _git("diff", "HEAD")


def machine() -> dict[str, object]:
    return {"host": platform.node(), "platform": platform.platform(), "cores": os.cpu_count(), "command": sys.orig_argv}


def _git(*words: str) -> str:
    try:
        return subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True, timeout=30
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
