"""Tables, as plain text for a terminal and as Markdown for a page."""

from __future__ import annotations

from collections.abc import Sequence

Row = Sequence[object]


def text(header: Sequence[str], rows: Sequence[Row]) -> str:
    """Lay `rows` out in columns under `header`, if that names any.

    The first column and those that hold words are aligned to the left. A float is shown with three digits, None as a
    dash, anything else by its `str`.
    """
    cells = [*([list(header)] if any(header) else []), *([cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    left = [column == 0 or any(is_word(row[column]) for row in rows) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        columns = zip(row, widths, left, strict=True)
        return "  ".join(one.ljust(width) if words else one.rjust(width) for one, width, words in columns).rstrip()

    return "\n".join(map(line, cells))


def markdown(header: Sequence[str], rows: Sequence[Row]) -> str:
    """Write `rows` as a Markdown table, with cells as in `text`."""
    lines = [header, ["---"] * len(header), *([cell(value).replace("|", "\\|") for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(value: object) -> str:
    """Return a value as tables show it."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def is_word(value: object) -> bool:
    """Tell whether a cell is a text that is no number."""
    return isinstance(value, str) and not value.replace(",", "").replace(".", "").lstrip("-").isdigit()
