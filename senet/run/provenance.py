"""Where a result came from: versions, code and machine, kept in the run folder and in every checkpoint."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from senet.config import Config, to_dict
from senet.system.files import write_text
from senet.system.run_folder import RunFolder

PACKAGES = ("torch", "torchvision", "triton", "nvidia-dali-cuda130", "timm", "wandb", "numpy", "pillow")
ROOT = Path(__file__).resolve().parent.parent


def versions() -> dict[str, str]:
    """Return those of Python and of the packages that results depend on; what is not installed is left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def code() -> tuple[str, str]:
    """Return the git commit of this code and the diff of what is not committed; empty outside a git checkout."""
    return _git("rev-parse", "HEAD").strip(), _git("diff", "HEAD")


def machine() -> dict[str, object]:
    return {"host": platform.node(), "platform": platform.platform(), "cores": os.cpu_count(), "command": sys.orig_argv}


def keep(folder: RunFolder, config: Config, flags: dict[str, Any]) -> None:
    """Write what defines a run into its folder: config, flags, versions, code, machine."""
    commit, diff = code()
    facts = {"flags": flags, "versions": versions(), "commit": commit, **machine()}
    write_text(folder.config, yaml.safe_dump(to_dict(config), sort_keys=False))
    write_text(folder.facts, json.dumps(facts, indent=1, default=str))
    if diff:
        write_text(folder.diff, diff)


def _git(*words: str) -> str:
    try:
        return subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True, timeout=30
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
