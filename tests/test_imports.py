"""Imports point one way, and each heavy package is imported in one place."""

import ast
from pathlib import Path

from tests.helpers import ROOT

ONLY_IN = {
    "wandb": {"senet/track/wandb_process.py"},
    "nvidia.dali": {"senet/data/dali.py", "senet/bench/loader.py"},
    "torch.distributed": {"senet/distributed.py", "launch/ranks.py"},
    "timm": {
        *("senet/models/timm.py", "senet/train/optimiser.py", "senet/train/batchnorm.py"),
        *("senet/bench/loader.py", "senet/bench/peers.py"),
    },
    "triton": {"senet/execution/kernels.py"},
    "matplotlib": {"senet/plots.py"},
}
# A room may import those of the lines above it, never one beside or below it.
LAYERS = [
    {"senet.errors"},
    {"senet.system"},
    {"senet.config", "senet.plots"},
    {"senet.models", "senet.data", "senet.distributed", "senet.track", "senet.slurm"},
    {"senet.execution", "senet.prepare", "senet.weights"},
    {"senet.train", "senet.plan"},
    {"senet.run"},
    {"senet.diagnose", "senet.report", "senet.analyze"},
    {"senet.bench", "senet.export"},
    {"launch", "senet.__init__"},
]
# What must answer in milliseconds, or on a machine without torch.
WITHOUT = {
    "senet/config/": ("torch", "numpy"),
    "senet/run/status.py": ("torch", "numpy", "yaml"),
    "senet/run/changes.py": ("torch", "numpy"),
    "senet/slurm.py": ("torch", "numpy"),
    "senet/train/schedule.py": ("torch", "numpy"),
}


def room(name: str) -> str:
    return "launch" if inside(name, "launch") else ".".join(name.split(".")[:2])


def imported(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def inside(name: str, packages: str | tuple[str, ...]) -> bool:
    return any(name == p or name.startswith(p + ".") for p in ([packages] if isinstance(packages, str) else packages))


def sources() -> list[Path]:
    return sorted((ROOT / "senet").rglob("*.py")) + sorted((ROOT / "launch").rglob("*.py"))


def test_each_heavy_package_is_imported_in_one_place() -> None:
    breaches = []
    for file in sources():
        path = str(file.relative_to(ROOT))
        for name in imported(file):
            breaches += [
                f"{path}: {name}" for package, places in ONLY_IN.items() if inside(name, package) and path not in places
            ]
            breaches += [
                f"{path}: {name}" for part, barred in WITHOUT.items() if path.startswith(part) and inside(name, barred)
            ]
    assert not breaches


def test_rooms_import_in_one_direction() -> None:
    level = {name: number for number, names in enumerate(LAYERS) for name in names}
    breaches = []
    for file in sources():
        own = room(".".join(file.relative_to(ROOT).with_suffix("").parts))
        assert own in level, f"{own}: a new room; give it a place in LAYERS"
        for name in imported(file):
            if (
                inside(name, ("senet", "launch"))
                and name != "senet"
                and (other := room(name)) != own
                and other in level
            ) and level[other] >= level[own]:
                breaches.append(f"{file.relative_to(ROOT)}: {name}")
    assert not breaches


def test_the_names_in_a_run_folder_are_written_in_one_place() -> None:
    """In code: what users read may name them. Doctor and submission look for the same files as the run."""
    names = {"config.yaml", "run.json", "execution.json", "status.json", "log.jsonl", "wandb_id", "health", "best.pt"}
    strangers = []
    for file in sources():
        strings = (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant))
        if any(string.value in names for string in strings if isinstance(string.value, str)):
            strangers.append(str(file.relative_to(ROOT)))
    assert strangers == ["senet/system/run_folder.py"]
