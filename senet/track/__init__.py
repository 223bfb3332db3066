"""What a run tells: JSON lines always, the terminal, Weights & Biases where wanted. Records are flat mappings of one
spelling.

Every record has `kind` (train, val, event), `epoch` (counted from 1), `step` (done since the run began) and `seconds`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from senet.track.jsonl import JsonLines
from senet.track.terminal import Terminal
from senet.track.wandb import WeightsAndBiases, decide

Record = Mapping[str, Any]


class Tracker(Protocol):
    def log(self, record: Record) -> None: ...
    def rewind(self, step: int) -> None:
        """The run has gone back to `step` and will log again what came after; only the events of that time stay.

        W&B has an axis of its own (see `WeightsAndBiases`) and keeps both.
        """

    def progress(
        self, epoch: int, epochs: int, step: int, steps: int, images_per_second: float, data_wait: float
    ) -> None: ...
    def say(self, text: str) -> None: ...
    def close(self, ok: bool) -> None: ...


class Silent:
    """The tracker of all ranks but the first."""

    def log(self, record: Record) -> None:
        pass

    def rewind(self, step: int) -> None:
        pass

    def progress(
        self, epoch: int, epochs: int, step: int, steps: int, images_per_second: float, data_wait: float
    ) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def close(self, ok: bool) -> None:
        pass


class Trackers:
    """The first rank's: tells all that are wanted."""

    def __init__(self, lines: JsonLines, terminal: Terminal, wandb: WeightsAndBiases | None) -> None:
        self.lines, self.terminal, self.wandb = lines, terminal, wandb

    def log(self, record: Record) -> None:
        self.lines.log(record)
        self.terminal.log(record)
        if self.wandb:
            self.wandb.log(record)

    def rewind(self, step: int) -> None:
        self.lines.rewind(step)
        self.terminal.rewind()

    def progress(
        self, epoch: int, epochs: int, step: int, steps: int, images_per_second: float, data_wait: float
    ) -> None:
        self.terminal.progress(epoch, epochs, step, steps, images_per_second, data_wait)

    def say(self, text: str) -> None:
        self.terminal.say(text)

    def close(self, ok: bool) -> None:
        if self.wandb:
            self.wandb.close(ok)
        self.terminal.close()
        self.lines.close()


def build(out: Path, *, choice: str, name: str, config: dict[str, Any], resume_step: int | None) -> Tracker:
    """The trackers of a run in folder `out`. `choice`: auto, none or wandb. A resumed run begins with
    `rewind(resume_step)`.
    """
    terminal = Terminal()
    wanted, why = decide(choice)
    terminal.say(why)
    wandb = WeightsAndBiases(out, name, config, terminal.say) if wanted else None
    return Trackers(JsonLines(out / "log.jsonl", resume_step), terminal, wandb)
