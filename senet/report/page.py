"""A report as one HTML file that needs nothing beside it."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from senet.config import to_dict
from senet.report.facts import RunFacts
from senet.report.paper import Quoted
from senet.report.summary import Cell, card, difference, starts, summary
from senet.system.table import cell, is_word
from senet.train.predictions import OfClass

STYLE = Path(__file__).with_name("style.css")


@dataclass(frozen=True)
class Wrong:
    """An image that the net got wrong: how it looks, its name, and the classes it was held for, each with a share."""

    picture: Image.Image
    name: str
    label: str
    of_label: float
    held_for: list[tuple[str, float]]


@dataclass(frozen=True)
class Seen:
    """What a run's net makes of the validation set, or the reason why nobody looked."""

    reason: str = ""
    what: str = ""  # was evaluated, in a sentence
    confusion: bytes = b""
    classes: Sequence[str] = ()
    rows: Sequence[OfClass] = ()
    pairs: Sequence[tuple[int, int, int]] = ()
    wrong: Sequence[Wrong] = ()


def html(
    title: str, runs: Sequence[RunFacts], paper: Quoted | None, pictures: dict[str, bytes], seen: Sequence[Seen]
) -> str:
    """Return the page."""
    header, rows = summary(runs)
    parts = [f"<header><h1>{escape(title)}</h1>", _state(runs), "</header>", _table(header, rows)]
    parts += [f"<p>{escape(line)}</p>" if (line := difference(runs)) else "", _paper(paper)]
    parts += ["<h2>Curves</h2>", *(_image(picture, f"chart: {name}") for name, picture in pictures.items())]
    if not pictures:
        parts.append("<p>Nothing was logged yet.</p>")
    for run, found in zip(runs, seen, strict=True):
        parts += _seen(run.label if len(runs) > 1 else "", found)
    for run in runs:
        parts += _card(run, len(runs) > 1)
    body = "\n".join(part for part in parts if part)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width">\n<style>\n{STYLE.read_text()}</style></head>\n'
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def _state(runs: Sequence[RunFacts]) -> str:
    lines = []
    for run in runs:
        where = f"epoch {run.status.epoch} of {run.status.epochs}, {run.status.at}" if run.status else ""
        reason = f"; {run.status.reason}" if run.status and run.status.reason else ""
        who = f"<b>{escape(run.label)}</b>: " if len(runs) > 1 else ""
        lines.append(f'<p class="faint">{who}{escape(f"{run.state}, {where}{reason}")}</p>')
    return "\n".join(lines)


def _paper(paper: Quoted | None) -> str:
    if paper is None:
        return ""
    differs = "; ".join(paper.differs)
    same = "The recipe is that of the config." if not differs else f"Settings that differ from it: {differs}"
    return f"<p>The paper: {escape(paper.text)}, by <code>configs/{escape(paper.config)}</code>. {escape(same)}</p>"


def _seen(label: str, seen: Seen) -> list[str]:
    title = "Errors" + f" of {label}" * bool(label)
    if seen.reason:
        return [f"<h2>{escape(title)}</h2>", f"<p>Not shown: {escape(seen.reason)}</p>"]
    names = seen.classes
    parts = [f"<h2>{escape(title)}</h2>", f"<p>{escape(seen.what)}</p>"]
    if seen.confusion:
        parts.append(_image(seen.confusion, "confusion matrix"))
    rows = sorted(seen.rows, key=lambda row: -row.error)
    few = len(rows) <= 100
    parts.append("<h3>By class</h3>" if few else "<h3>By class: the 30 with most errors</h3>")
    cells: list[list[Cell]] = [
        [names[row.label], row.images, f"{row.error:.1f}", f"{100 - row.error:.1f}", f"{row.top5_error:.1f}",
         None if row.precision is None else f"{row.precision:.1f}",
         None if row.taken_for is None else names[row.taken_for]]
        for row in (rows if few else rows[:30])
    ]  # fmt: skip
    header = ["class", "images", "error %", "recall %", "top-5 error %", "precision %", "mostly taken for"]
    parts.append(_table(header, cells))
    if seen.pairs:
        parts.append("<h3>Most frequent confusions</h3>")
        parts.append(_table(["class", "taken for", "images"], [[names[i], names[j], n] for i, j, n in seen.pairs]))
    if seen.wrong:
        parts += ["<h3>Most wrong images</h3>", '<div class="wrong">', *map(_wrong, seen.wrong), "</div>"]
    return parts


def _wrong(image: Wrong) -> str:
    file = io.BytesIO()
    image.picture.save(file, "PNG")
    held = "<br>".join(f"{escape(name)} {100 * share:.1f} %" for name, share in image.held_for)
    own = f"{escape(image.label)} {100 * image.of_label:.1f} %"
    caption = f"is <b>{own}</b>, held for<br>{held}<br><span class=faint>{escape(image.name)}</span>"
    return f"<figure>{_image(file.getvalue(), image.label)}<figcaption>{caption}</figcaption></figure>"


def _card(run: RunFacts, several: bool) -> list[str]:
    config = yaml.safe_dump(to_dict(run.config), sort_keys=False)
    parts = [f"<h2>Run card{f' of {escape(run.label)}' if several else ''}</h2>", _table([], card(run))]
    if len(run.starts) > 1:
        parts += ["<h3>Starts</h3>", _table(*starts(run))]
    if run.command:
        parts += ["<h3>The command that began it</h3>", f"<pre>{escape(run.command)}</pre>"]
    if run.events:
        rows = [[event["epoch"], event["step"], _event(event)] for event in run.events[-200:]]
        table = _table(["epoch", "step", "what"], rows)
        parts.append(f"<details><summary>Events: {len(run.events)}</summary>{table}</details>")
    return [*parts, f"<details><summary>Config, all settings</summary><pre>{escape(config)}</pre></details>"]


def _event(record: Any) -> str:
    known = ("kind", "epoch", "step", "seconds")
    return ", ".join(f"{key.replace('_', ' ')}: {value}" for key, value in record.items() if key not in known)


def _image(png: bytes, text: str) -> str:
    return f'<img alt="{escape(text)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _table(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Return a table; numbers stand to the right."""
    right = [bool(header) and not any(map(is_word, column)) for column in zip(*rows, strict=True)]

    def line(cells: Sequence[Cell], tag: str) -> str:
        numbers = (" class=number" * is_number for is_number in right)
        made = (f"<{tag}{kind}>{escape(cell(value))}</{tag}>" for value, kind in zip(cells, numbers, strict=True))
        return f"<tr>{''.join(made)}</tr>"

    head = f"<thead>{line(header, 'th')}</thead>" if header and rows else ""
    return f'<div class="scroll"><table>{head}<tbody>{"".join(line(row, "td") for row in rows)}</tbody></table></div>'
