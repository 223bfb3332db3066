"""A row survives whatever happens to its writer, and all rows make one table and one chart."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from launch import bench
from senet.bench.rows import Row, append, draw, last, read, show
from senet.errors import UsageError
from senet.system.timing import Spread
from tests.helpers import ROOT

FAST, SLOW = Spread(1200.0, 1100.0, 1250.0, 3), Spread(10.0, 9.0, 11.0, 3)
ROWS = [
    Row("net", "eager", SLOW, facts={"x timm": Spread(0.5, 0.4, 0.6, 2), "batch": 8}, part="a"),
    Row("net", "compiled", failure="out of memory", part="a"),
    Row("net", "eager", FAST, "ms", part="b"),
]


def test_what_is_cut_costs_one_row(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    assert read(file) == []
    append(file, ROWS)
    whole = file.read_text()
    file.write_text(whole[:-20])
    assert read(file) == ROWS[:2]
    append(file, ROWS[2:])  # goes on in a line of its own
    assert read(file) == ROWS
    better = Row("net", "compiled", FAST, part="a")
    append(file, [better])
    assert read(file) == [ROWS[0], better, ROWS[2]]
    assert last([*ROWS, better]) == [ROWS[0], better, ROWS[2]]


WRITER = """
import sys, time
from pathlib import Path
from launch import bench
from senet.bench.rows import Row, append

def rows():
    yield Row("net", "eager")
    print("written", flush=True)
    time.sleep(600)

append(Path(sys.argv[1]), rows())
"""


def test_rows_are_there_although_their_writer_is_killed(tmp_path: Path) -> None:
    words = [sys.executable, "-c", WRITER, str(tmp_path / "rows.jsonl")]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "written\n"
        writer.kill()
    assert read(tmp_path / "rows.jsonl") == [Row("net", "eager")]


def test_one_table_shows_all_facts_and_failures() -> None:
    assert show(ROWS[:2]).splitlines() == [
        "                    images/s               x timm  batch",
        "net  eager  10.0 (9.00-11.0)  0.500 (0.400-0.600)      8",
        "net compiled: not measured: out of memory",
    ]
    lines = show(ROWS, markdown=True).splitlines()
    assert lines[0] == "|  |  |  |  | x timm | batch |"
    assert lines[3] == "| net | eager | 1,200 (1,100-1,250) | ms | - | - |"
    assert lines[-1] == "net compiled: not measured: out of memory"


def test_a_file_that_cannot_be_written_is_refused_before_minutes_are_spent(tmp_path: Path) -> None:
    for flag in ("--json", "--png"):
        with pytest.raises(UsageError, match="nowhere/rows: name a file in a folder that exists"):
            bench.main(["step", flag, str(tmp_path / "nowhere/rows")])


def test_rows_are_drawn(tmp_path: Path) -> None:
    draw(ROWS[:2], "title", tmp_path / "rows.png", "note")
    with Image.open(tmp_path / "rows.png") as read_again:
        assert read_again.width > 1000
    with pytest.raises(UsageError, match="cannot be written"):
        draw(ROWS, "title", tmp_path / "nowhere" / "rows.png")
