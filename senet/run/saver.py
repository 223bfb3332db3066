"""Checkpoints written behind the training's back: a snapshot in memory, then a thread that writes it."""

from __future__ import annotations

import errno
import math
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from senet.run import checkpoint
from senet.run.checkpoint import Payload
from senet.system.files import free_bytes
from senet.system.run_folder import CheckpointFolder, facts_of

SPARE = 16 << 20  # bytes left free on the disk


class Saver:
    """One checkpoint may wait while another is written; a third makes the training wait.

    A disk that is full, or fails, costs the checkpoint and not the run: `news` says so, and what was written before
    stays. Other failures are raised by whatever method is called next.
    """

    def __init__(self, folder: CheckpointFolder, keep: int) -> None:
        """`keep`: how many of the newest checkpoints stay."""
        self.folder, self.keep = folder, keep
        self.saved: tuple[int, int] | None = None  # step and epoch of the last checkpoint that it has written
        self._thread = ThreadPoolExecutor(1, "saver")
        self._pending: deque[Future[str]] = deque()  # each ends with what went wrong, or nothing
        self._news: list[str] = []
        self._said: set[str] = set()

    def save(self, payload: Payload, errors: Mapping[str, float], names: Sequence[Path] = ()) -> None:
        """Take a snapshot of `payload` and return. It is written under the name of its step, under further `names`,
        and as the best if its validation `errors` are less than those of best.pt.
        """
        while len(self._pending) > 1:
            self._collect()
        copy, made = [snapshot(payload)], None
        if torch.cuda.is_initialized():
            made = torch.cuda.Event()
            made.record()
        self._pending.append(self._thread.submit(self._write, copy, made, errors, names))

    def finish(self) -> None:
        """Wait until everything is on disk."""
        while self._pending:
            self._collect()

    def close(self) -> None:
        self._thread.shutdown()
        self.finish()

    def news(self) -> list[str]:
        """Return what went wrong since the last call."""
        while self._pending and self._pending[0].done():
            self._collect()
        news, self._news = self._news, []
        return news

    def _collect(self) -> None:
        failure = self._pending.popleft().result()
        if failure and failure not in self._said:
            self._said.add(failure)
            self._news.append(failure)

    def _write(
        self, box: list[Payload], made: torch.cuda.Event | None, errors: Mapping[str, float], names: Sequence[Path]
    ) -> str:
        # Out of its box, so that it is let go once it is copied: it takes as much of the device as the training.
        payload = _to_host(box.pop(), made)
        progress = payload.progress
        path = self.folder.of_step(progress.global_step)
        better = bool(errors) and errors["top1_error"] < facts_of(self.folder.best).get("top1_error", math.inf)
        failure = ""
        try:
            self.folder.path.mkdir(parents=True, exist_ok=True)
            need, free = payload.nbytes + SPARE, free_bytes(self.folder.path)
            if free < need:
                raise OSError(errno.ENOSPC, f"{int(free) >> 20} MiB free, {need >> 20} MiB needed")
            checkpoint.write(payload, errors, [*([self.folder.best] if better else []), *names, path])
            self.saved = progress.global_step, progress.epoch
        except OSError as error:
            failure = f"checkpoint {path} NOT written: {error.strerror or error}; training goes on"
        try:
            checkpoint.prune(self.folder, self.keep, progress.global_step)
        except OSError as error:
            failure = failure or f"{self.folder.path}: old checkpoints stay: {error.strerror or error}"
        return failure


def snapshot(payload: Payload) -> Payload:
    """Return a copy that is not reached by what happens to the tensors afterwards."""
    return payload.map(lambda tensor: tensor.detach().clone())


def _to_host(payload: Payload, made: torch.cuda.Event | None) -> Payload:
    """Copy on a stream of its own: on the common one the copies would queue with the training's kernels."""
    if made is None:
        return payload
    stream = torch.cuda.Stream(made.device)  # this thread's own device is GPU 0
    stream.wait_event(made)
    with torch.cuda.stream(stream):
        return payload.map(lambda tensor: tensor.cpu())
