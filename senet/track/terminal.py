"""A progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from senet.track.tracker import Record, Stage, Tracker

SHORT = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}, {remaining} left{postfix}"


def bar(what: str, total: float, unit: str, done: int = 0, main: bool = True, form: str | None = None) -> tqdm[Any]:
    """Return a progress bar on standard error, if that is a terminal and this the `main` process; it is there at once.

    Of `total` units `done` are done already. It goes when it is closed. `form` is tqdm's `bar_format`.
    """
    how: dict[str, Any] = {"leave": False, "dynamic_ncols": True, "disable": not (main and sys.stderr.isatty())}
    return tqdm(desc=what, total=total, initial=done, unit=f" {unit}s", bar_format=form, **how)


@contextlib.contextmanager
def ticking(shown: tqdm[Any]) -> Iterator[tqdm[Any]]:
    """Draw a bar once a second as long as the context lasts, and close it then: for units that take minutes."""
    ended = threading.Event()

    def tick() -> None:
        while not ended.wait(1):
            shown.refresh()

    thread = threading.Thread(target=tick, name="bar", daemon=True)
    thread.start()
    try:
        yield shown
    finally:
        ended.set()
        thread.join()
        shown.close()


class Terminal(Tracker):
    """Writes to standard error. A bar for each epoch and validation; lines of `say` stay."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()
        self.bar: tqdm[Any] = tqdm(disable=True)  # a closed bar takes no notice of anything
        self.stage: Stage | None = None
        self.left: float | None = None  # seconds of the whole run
        self.figures: list[str] = []  # of the last record

    def log(self, record: Record) -> None:
        if record["kind"] == "train":
            figures = [f"loss {record['loss']:.4f}"]
            if (speed := record.get("images_per_second")) is not None:
                figures += [f"{speed:.0f} images/s", f"data wait {record['data_wait']:.0%}"]
            self.figures = figures
            self.bar.set_postfix_str(", ".join([*self._time_left(), *figures]))
            if not self.live:
                figures = [*figures, f"lr {record['learning_rate']:.4g}", *self._time_left()]
                self.say(f"{self._position(record)}: {', '.join(figures)}")
        elif record["kind"] == "val":
            self.bar.close()
            averaged = f" (EMA {record['ema_top1_error']:.2f} %)" if "ema_top1_error" in record else ""
            self.say(
                f"epoch {record['epoch']}: top-1 error {record['top1_error']:.2f} %{averaged}, top-5 "
                f"{record['top5_error']:.2f} % on {record['images']} images; training "
                f"{record['train_top1_error']:.2f} %, loss {record['train_loss']:.4f}"
            )
        elif "slow_rank" in record:
            self.say(_straggler(record))
        elif "warning" in record:
            self.say(f"warning: {record['warning']}")
        else:
            facts = {key: value for key, value in record.items() if key not in ("kind", "epoch", "step", "seconds")}
            self.say(" ".join(f"{key} {value}" for key, value in facts.items()))

    def begin(self, stage: Stage) -> None:
        self.bar.close()
        self.stage, self.figures = stage, []
        unit = "step" if stage.what == "epoch" else "image"
        self.bar = bar(f"{stage.what} {stage.epoch}/{stage.epochs}", stage.total, unit, stage.done, form=SHORT)

    def advance(self, done: int) -> None:
        self.bar.set_postfix_str(", ".join([*self._time_left(), *self.figures]), refresh=False)
        self.bar.update(min(done, self.bar.total or 0) - self.bar.n)

    def expect(self, seconds: float | None) -> None:
        self.left = seconds

    def rewind(self, step: int) -> None:
        self.bar.close()

    def say(self, text: str) -> None:
        with contextlib.suppress(OSError):  # a file on a full disk
            tqdm.write(text, file=sys.stderr)  # above the bars, if there are any

    def close(self, ok: bool) -> None:
        self.bar.close()

    def _position(self, record: Record) -> str:
        """Return the time of day and how far the run is, for a log that is read later."""
        clock = time.strftime("%H:%M:%S")
        if self.stage is None:
            return f"{clock} epoch {record['epoch']} step {record['step']}"
        stage, before = self.stage, (record["epoch"] - 1) * self.stage.total
        return f"{clock} epoch {record['epoch']}/{stage.epochs}, step {record['step'] - before}/{stage.total}"

    def _time_left(self) -> list[str]:
        return [] if self.left is None else [f"run {duration(self.left)} left"]


def duration(seconds: float) -> str:
    """Return seconds as a person says them: 50 s, 12 min, 3 h 20 min, 2 d 5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def _straggler(record: Record) -> str:
    who = f"rank {record['slow_rank']} on {record['host']}"
    if record["over"]:
        return f"{who} keeps up again"
    parts = ", ".join(f"{name} {record[name]:.0%}" for name in ("data", "compute", "communication"))
    work = f"its own work takes {record['factor']:.1f} times the usual"
    return f"warning: {who} holds up the others: {work}; of its time {parts}"
