"""Imports point one way, and each heavy package is imported in one place."""

import ast
from pathlib import Path

from tests.conftest import ROOT

ONLY_IN = {
    "wandb": {"senet/track/uplink.py"},
    "nvidia.dali": {"senet/data/dali.py", "senet/data/probe.py", "senet/bench/loader.py"},
    "torch.distributed": {"senet/world.py"},
    "timm": {"senet/models/zoo.py"},
    "triton": {"senet/models/kernels.py"},
}
MAY_NOT = {
    "senet/config.py": ("torch", "numpy", "senet.models", "senet.data", "senet.train"),
    "senet/status.py": ("torch", "numpy", "yaml", "senet.models", "senet.data", "senet.train"),
    "senet/submit.py": ("torch", "numpy", "senet.models", "senet.data", "senet.train"),
    "senet/schedule.py": ("torch", "senet.models", "senet.data", "senet.train"),
    "senet/models/": ("senet.data", "senet.train", "senet.track", "senet.world"),
    "senet/data/": ("senet.models", "senet.train", "senet.track", "senet.world"),
    "senet/track/": ("senet.models", "senet.data", "senet.train", "senet.world"),
    "senet/prepare/": ("senet.models", "senet.train", "senet.track", "senet.world"),
    "senet/plan/": ("senet.data", "senet.train", "senet.track", "senet.world"),
    "senet/chart.py": ("torch", "numpy", "senet.config", "senet.models", "senet.data", "senet.train"),
    "senet/": ("launch",),
}


def imported(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def test_imports() -> None:
    breaches = []
    for file in sorted((ROOT / "senet").rglob("*.py")) + sorted((ROOT / "launch").rglob("*.py")):
        path = str(file.relative_to(ROOT))
        for name in imported(file):
            breaches += [f"{path} imports {name}" for package, places in ONLY_IN.items() if inside(name, package) and path not in places]
            breaches += [
                f"{path} imports {name}"
                for part, barred in MAY_NOT.items()
                if path.startswith(part) and any(inside(name, b) for b in barred)
            ]
    assert not breaches
