"""What all drills share, their options, and the table that they end with."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from senet.prepare.demo import Demo, prepare
from tests.drills.sandbox import Sandbox

COLUMNS = ("fault", "came back by", "weights", "images", "log", "back after", "steps again")


def pytest_addoption(parser: pytest.Parser) -> None:
    options = parser.getgroup("drills", "drills (tests/drills/README.md)")
    options.addoption("--drill-device", default="cpu", choices=["cpu", "cuda"], help="where they train (default cpu)")
    options.addoption("--drill-ranks", type=int, default=2, metavar="N", help="processes of a run (default 2)")
    options.addoption("--drill-seed", type=int, default=0, metavar="N", help="of the steps at which faults happen")
    options.addoption("--drill-table", type=Path, metavar="FILE", help="also write the table there, as Markdown")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep only the drills for every change unless `-m drill` asks for all of them."""
    if "drill" in config.option.markexpr:
        return
    left_out = [item for item in items if (mark := item.get_closest_marker("drill")) and not mark.kwargs["always"]]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]


@pytest.fixture(scope="session")
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The images, an undisturbed run, and the place of one that is stopped as soon as a drill needs it."""
    folder = tmp_path_factory.mktemp("drills")
    # The demo set's first pictures: 98 for training, so that two are left over, and 50 for validation.
    prepare(folder / "data", Demo(train=98, val=50))
    place = {"data": folder / "data", "device": request.config.option.drill_device}
    place["ranks"] = request.config.option.drill_ranks
    place["forked"] = "drill" not in request.config.option.markexpr  # for every change; whoever asks gets all of it
    undisturbed, stopped = (Sandbox(folder / name, **place) for name in ("undisturbed", "stopped"))
    undisturbed.run()
    return place | {"undisturbed": undisturbed, "stopped": stopped}


@pytest.fixture
def sandbox(request: pytest.FixtureRequest, tmp_path: Path, shared: dict[str, Any]) -> Iterator[Sandbox]:
    dice = random.Random(f"{request.config.option.drill_seed} {request.node.name}")
    it = Sandbox(tmp_path, **shared, dice=dice)
    yield it
    it.close()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print what each drill came to, in the order of the catalogue."""
    rows = []
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            row = dict(getattr(report, "user_properties", ())).get("drill")
            if row is not None and (report.when == "call" or outcome != "passed"):
                rows.append(
                    [row[0], row[1], *(row[2:] if outcome == "passed" else [outcome.upper(), "", "", "", "", ""])]
                )
    if not rows:
        return
    table = [COLUMNS, ["---"] * len(COLUMNS), *(row[1:] for row in sorted(rows))]
    text = "\n".join(f"| {' | '.join(row)} |" for row in table)
    terminalreporter.section("drills")
    terminalreporter.write_line(text)
    if file := config.getoption("drill_table", None):
        file.write_text(text + "\n")
