"""TensorBoard, if it is asked for: event files in OUT/tensorboard."""

from __future__ import annotations

import importlib.util
from typing import Any

from senet.errors import UsageError
from senet.system.table import markdown
from senet.track.tracker import Record, Results, Start, Tracker


class TensorBoard(Tracker):
    """Every figure of a record is a scalar over the steps of the run; other fields are text."""

    def __init__(self, start: Start) -> None:
        self.folder = start.folder.tensorboard
        self.writer = self._open(start.resume_step)

    @staticmethod
    def decide(asked: bool) -> tuple[bool, str]:
        if asked and importlib.util.find_spec("tensorboard") is None:
            raise UsageError("--track tensorboard: the package is not installed; pip install tensorboard")
        return asked, "TensorBoard: on (tensorboard --logdir RUNS shows it)" if asked else ""

    def _open(self, step: int | None) -> Any:
        from torch.utils.tensorboard.writer import SummaryWriter

        # Readers drop what was logged from `purge_step` on.
        return SummaryWriter(self.folder, purge_step=None if step is None else step + 1, flush_secs=10)

    def log(self, record: Record) -> None:
        kind, step = record["kind"], record["step"]
        for name, value in record.items():
            if name in ("kind", "step"):
                continue
            if isinstance(value, int | float):
                self.writer.add_scalar(f"{kind}/{name}", value, step)
            else:
                self.writer.add_text(f"{kind}/{name}", str(value), step)

    def rewind(self, step: int) -> None:
        self.writer.close()
        self.writer = self._open(step)

    def finish(self, results: Results) -> None:
        import numpy as np

        step, classes, examples = results.position["step"], results.classes, results.examples
        self.writer.add_text("val/classes", markdown(classes.columns, classes.rows), step)
        for picture, (_, *said) in zip(results.pictures, examples.rows, strict=True):
            words = ", ".join(f"{name} {value}" for name, value in zip(examples.columns[1:], said, strict=True))
            self.writer.add_image(f"val/examples/{words}", np.asarray(picture), step, dataformats="HWC")

    def close(self, ok: bool) -> None:
        self.writer.close()
