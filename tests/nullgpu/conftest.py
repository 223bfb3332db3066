"""Null GPUs for the tests: `runtime.cpp` says what is true on them, README.md how to run a program on them by hand."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import ROOT, environment, run
from tests.nullgpu.build import build, obstacle
from tests.preloaded import Preloaded

SITE = Path(__file__).parent / "site"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker("nullgpu")


class NullGpus:
    """Starts programs on null GPUs, and reads what each process noted of itself."""

    def __init__(self, preloaded: Preloaded, folder: Path) -> None:
        self.preloaded, self.folder = preloaded, folder

    def run(
        self, module: str, *words: object, ranks: int = 1, restarts: int = 0, **more: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a program on two devices of 80 GiB each, unless `more` of its environment says otherwise."""
        settings = self.environment() | more
        elastic = ranks > 1  # torchrun's, for the ways in which it ends ranks
        return run(
            module, *words, ranks=ranks, restarts=restarts, torchrun=elastic, preloaded=self.preloaded, **settings
        )

    def told(self, module: str, *words: object, ranks: int = 1, **more: str) -> list[dict[str, Any]]:
        """Run a program that is to end well, and return the lines of JSON that it printed."""
        done = self.run(module, *words, ranks=ranks, **more)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    def environment(self) -> dict[str, str]:
        """Return what makes a process run on null GPUs."""
        for name in ("shared", "log", "cache"):
            (self.folder / name).mkdir(exist_ok=True)
        own = {"SHARED": "shared", "LOG": "log"}
        paths = {f"NULLGPU_{name}": str(self.folder / folder) for name, folder in own.items()}
        return self.preloaded.environment | paths | {"XDG_CACHE_HOME": str(self.folder / "cache")}

    def log(self, rank: int) -> Counter[str]:
        """Return what the processes of a rank noted, as lines of words and a number, and how often they did."""
        files = (self.folder / "log").glob(f"{rank}.*")
        return Counter(line for file in files for line in file.read_text().splitlines())


@pytest.fixture(scope="session")
def preloaded() -> Iterator[Preloaded]:
    """A process to fork programs from, with the null GPU's libraries, which are built once."""
    if why := obstacle():
        pytest.skip(f"no null GPU: {why}")
    libraries = build()
    library, folder = str(libraries / "libnull.so"), str(libraries / "lib")
    site = {"PYTHONPATH": f"{SITE}:{ROOT}", "TORCHINDUCTOR_COMPILE_THREADS": "1", "NULLGPU_LIBRARY": library}
    linked = {"LD_PRELOAD": library, "LD_LIBRARY_PATH": folder, "TRITON_LIBCUDA_PATH": folder}
    made = Preloaded(ROOT, environment(**site, **linked))
    yield made
    made.close()


@pytest.fixture
def nullgpus(preloaded: Preloaded, tmp_path: Path) -> NullGpus:
    (folder := tmp_path / "nullgpus").mkdir()
    return NullGpus(preloaded, folder)
