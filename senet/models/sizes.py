"""The size of every config beside the paper's: the golden file of the tests and a table for people."""

import functools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from senet import config
from senet.models import Summary, summary

MARKS = "<!-- sizes: made by python -m launch.show --sizes -->", "<!-- end of sizes -->"


class Paper(NamedTuple):
    """What the paper prints for a config; None if it prints nothing."""

    error: str  # percent, with the table
    gflops: float | None
    parameters: float | None  # millions


class Row(NamedTuple):
    name: str  # FILE.yaml or FILE.yaml:VARIANT, from the root of the repository
    size: Summary
    paper: Paper | None


def rows(root: Path) -> list[Row]:
    """Count each config in `root`/configs and each of its variants."""
    found = []
    for file in sorted((root / "configs").rglob("*.yaml")):
        notes = papers(file.read_text())
        for name in dict.fromkeys([str(file), *config.variants(file)]):
            settings = config.load(name)
            size = _summary(settings.net, settings.data.classes, settings.data.crop)
            found.append(Row(name.removeprefix(f"{root}/"), size, notes.get(name.removeprefix(str(file)))))
    return found


_summary = functools.cache(summary)  # many variants differ in the recipe only


def papers(text: str) -> dict[str, Paper]:
    """Read the paper's numbers from a config file: `{"": of the file, ":NAME": of a variant}`."""
    notes = [("", note) for note in re.findall(r"^# paper: (.*?) {2,}ours:", text, re.MULTILINE)]
    notes += re.findall(r"^  (\S+):.*# paper: (.*)$", text, re.MULTILINE)
    return {name and f":{name}": _paper(note) for name, note in notes if re.match(r"\d", note)}


def _paper(note: str) -> Paper:
    flops = re.search(r"([\d.]+) ([GM])FLOPs", note)
    parameters = re.search(r"([\d.]+) M parameters", note)
    return Paper(
        re.sub(r", [\d.]+ ([GM]FLOPs|M parameters)", "", note),
        float(flops[1]) / (1000 if flops[2] == "M" else 1) if flops else None,
        float(parameters[1]) if parameters else None,
    )


def golden(found: Iterable[Row]) -> str:
    """Return the golden file of the tests, one line a config."""
    head = (
        "# Trainable parameters and mega-multiply-adds of convolutions and FC layers (SE's included) of each config.\n"
        "# Made by python -m launch.show --sizes; a change of a number is a change of a network.\n"
    )
    return head + "".join(f"{row.name}: [{row.size.parameters}, {row.size.macs / 1e6:.2f}]\n" for row in found)


def table(found: Iterable[Row]) -> str:
    """Return a Markdown table of those configs of which the paper prints a size, or an error on CIFAR."""
    lines = [
        "| config | parameters | GMACs | paper: GFLOPs | M parameters | error, % |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for name, size, paper in found:
        if paper and (paper.gflops or paper.parameters or "/cifar" in name):
            gflops = "" if paper.gflops is None else f"{paper.gflops:.{2 if paper.gflops >= 1 else 3}f}"
            millions = "" if paper.parameters is None else f"{paper.parameters:.1f}"
            own = f"`{name.removeprefix('configs/')}` | {size.parameters:,} | {size.gmacs:.3f}"
            lines.append(f"| {own} | {gflops} | {millions} | {paper.error} |")
    return "\n".join(lines) + "\n"


def write(root: Path) -> list[Path]:
    """Write the golden file, and the table between its marks in configs/README.md; return the paths of both."""
    found = rows(root)
    complexity, readme = root / "tests/golden/complexity.yaml", root / "configs/README.md"
    complexity.write_text(golden(found))
    readme.write_text(with_table(readme.read_text(), table(found)))
    return [complexity, readme]


def with_table(text: str, made: str) -> str:
    """Return `text` with what stands between the marks replaced by `made`."""
    begin, end = map(re.escape, MARKS)
    found, count = re.subn(f"(?<={begin}\n).*?(?={end})", lambda _: made, text, flags=re.DOTALL)
    assert count == 1, f"configs/README.md has lost one of its marks, {MARKS}"
    return found
