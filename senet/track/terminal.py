"""A progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

from senet.track.tracker import Record, Tracker


class Terminal(Tracker):
    """Writes to standard error. One bar an epoch; the lines that stay are those of the validations and of `say`."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()
        self.bar: tqdm[Any] | None = None
        self.loss = float("nan")

    def log(self, record: Record) -> None:
        if record["kind"] == "train":
            self.loss = record["loss"]
            if not self.live:
                rates = f"{record['images_per_second']:.0f} images/s, waiting for data {record['data_wait']:.0%}"
                self.say(
                    f"epoch {record['epoch']} step {record['step']}: loss {record['loss']:.4f}, lr "
                    f"{record['learning_rate']:.4g}, {rates}"
                )
        elif record["kind"] == "val":
            self._end_bar()
            self.say(
                f"epoch {record['epoch']}: top-1 error {record['top1_error']:.2f} %, top-5 "
                f"{record['top5_error']:.2f} % on "
                f"{record['images']} images; training {record['train_top1_error']:.2f} %, loss "
                f"{record['train_loss']:.4f}"
            )
        elif "slow_rank" in record:
            self.say(_straggler(record))
        elif "warning" in record:
            self.say(f"warning: {record['warning']}")
        else:
            self.say(
                " ".join(
                    f"{key} {value}" for key, value in record.items() if key not in ("kind", "epoch", "step", "seconds")
                )
            )

    def progress(
        self, epoch: int, epochs: int, step: int, steps: int, images_per_second: float, data_wait: float
    ) -> None:
        if not self.live:
            return
        if self.bar is None:
            self.bar = tqdm(total=steps, desc=f"epoch {epoch}/{epochs}", unit="step", leave=False, dynamic_ncols=True)
        self.bar.set_postfix_str(
            f"{images_per_second:.0f} images/s, data {data_wait:.0%}, loss {self.loss:.3f}", refresh=False
        )
        self.bar.update(step - self.bar.n)
        self.bar.refresh()

    def rewind(self, step: int) -> None:
        self._end_bar()

    def say(self, text: str) -> None:
        if self.bar is not None:
            self.bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self, ok: bool) -> None:
        self._end_bar()

    def _end_bar(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def _straggler(record: Record) -> str:
    who = f"rank {record['slow_rank']} on {record['host']}"
    if record["over"]:
        return f"{who} keeps up again"
    parts = ", ".join(f"{name} {record[name]:.0%}" for name in ("data", "compute", "communication"))
    return (
        f"warning: {who} holds up the others: its own work takes {record['factor']:.1f} times the "
        f"usual; of its time {parts}"
    )
