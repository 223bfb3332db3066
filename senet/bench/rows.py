"""The one record of all benches, a row: kept in a file line by line as it comes, shown in one table and one chart."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from senet.system import table
from senet.system.timing import Spread

Fact = Spread | float | str | None


@dataclass(frozen=True)
class Row:
    """What was measured of `what`, done in the way `how`. A later row of the same part, what and how replaces it."""

    what: str  # a net, a loader, a convolution, ...
    how: str = ""  # an execution, a peer, a direction, ...
    value: Spread | None = None  # None: see `failure`
    unit: str = "images/s"
    facts: Mapping[str, Fact] = field(default_factory=dict)  # further columns by name
    failure: str | None = None
    part: str = ""  # of the GPU bench

    @property
    def key(self) -> tuple[str, str, str]:
        return self.part, self.what, self.how

    def number(self, fact: str) -> float | None:
        """Return a fact as a number, of a spread its median; None if it is not there."""
        value = self.facts.get(fact)
        return value.median if isinstance(value, Spread) else value if isinstance(value, (int, float)) else None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Row:
        """Restore what `dataclasses.asdict` made plain."""

        def fact(value: Any) -> Any:
            return Spread(**value) if isinstance(value, dict) else value

        facts = {name: fact(value) for name, value in values["facts"].items()}
        return cls(**{**values, "value": fact(values["value"]), "facts": facts})


def last(rows: Iterable[Row]) -> list[Row]:
    """Keep of each key the last row, at the place of the first."""
    return list({row.key: row for row in rows}.values())


def append(file: Path, rows: Iterable[Row]) -> None:
    """Write rows as they come, each at once: what is killed keeps what it has."""
    with file.open("a") as out:
        out.write("\n")  # the last line may have been cut
        for row in rows:
            print(json.dumps(asdict(row)), file=out, flush=True)


def read(file: Path) -> list[Row]:
    """Read what `append` wrote, of each key the last row; a line that was cut is left out."""
    found = []
    for line in file.read_text().splitlines() if file.exists() else ():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            found.append(Row.from_dict(json.loads(line)))
    return last(found)


def show(rows: Sequence[Row], markdown: bool = False) -> str:
    """Lay rows out as one table, with a column for each of their facts, and the failures below it."""
    good = [row for row in rows if not row.failure]
    facts = list(dict.fromkeys(name for row in good for name in row.facts))
    units = {row.unit for row in good}
    unit = units.pop() if len(units) == 1 else None
    cells = [
        [row.what, row.how, row.value, *([] if unit else [row.unit]), *(row.facts.get(name) for name in facts)]
        for row in good
    ]
    header = ["", "", unit or "", *([] if unit else [""]), *facts]
    # A column without anything in it (a fact that no row has, a way that needs no name) is left out.
    kept = [i for i in range(len(header)) if any(row[i] not in (None, "") for row in cells)]
    lay_out = table.markdown if markdown else table.text
    body = [[row[i] for i in kept] for row in cells]
    failures = [f"{row.what} {row.how}: not measured: {row.failure}" for row in rows if row.failure]
    separator = "\n\n" if markdown else "\n"
    return separator.join([*([lay_out([header[i] for i in kept], body)] if body else []), *failures])


def draw(rows: Sequence[Row], title: str, file: Path, note: str = "") -> None:
    """Draw the values of rows as bars; a fact `roofline` is a mark on them. Raises UsageError."""
    from senet import plots

    bars = []
    for row in rows:
        spread = row.value
        low, high = (spread.low, spread.high) if spread and spread.n > 1 else (None, None)
        value = spread.median if spread else None
        bars.append(plots.Bar(row.what, value, row.how, low, high, row.number("roofline")))
    with plots.page(file, title, note=note) as (axes,):
        plots.bars(axes, bars, rows[0].unit if rows else "")
