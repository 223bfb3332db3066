"""Checkpoints written behind the training's back: a snapshot in memory, then a thread that writes it."""

from __future__ import annotations

import errno
import queue
import shutil
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from senet.run import checkpoint
from senet.run.checkpoint import Payload
from senet.system.run_folder import CheckpointFolder

SPARE = 16 << 20  # bytes left free on the disk


@dataclass
class _Job:
    step: int
    payload: Payload | None  # let go once it is copied to the host: it takes as much of the device as the training
    errors: Mapping[str, float]
    names: list[Path]
    made: torch.cuda.Event | None


class Saver:
    """One checkpoint may wait while another is written; a third makes the training wait.

    A disk that is full, or fails, costs the checkpoint and not the run: `news` says so, and what was written before
    stays.
    """

    def __init__(self, folder: CheckpointFolder, keep: int) -> None:
        """`keep`: how many of the newest checkpoints stay."""
        self.folder, self.keep = folder, keep
        self._jobs: queue.Queue[_Job | None] = queue.Queue(1)
        self._news: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="saver", daemon=True)
        self._thread.start()

    def save(self, payload: Payload, errors: Mapping[str, float], names: list[Path]) -> None:
        """Take a snapshot of `payload` and return. Once written it has further `names`, too: best.pt, say."""
        copy, made = snapshot(payload), None
        if torch.cuda.is_initialized():
            made = torch.cuda.Event()
            made.record()
        self._put(_Job(payload.progress.global_step, copy, errors, names, made))

    def finish(self) -> None:
        """Wait until everything is on disk."""
        while self._jobs.unfinished_tasks and self._thread.is_alive():
            time.sleep(0.002)
        self._raise()

    def close(self) -> None:
        self._put(None)
        self._thread.join()
        self._raise()

    def news(self) -> list[str]:
        """Return what went wrong since the last call."""
        return [self._news.get() for _ in range(self._news.qsize())]

    def _put(self, job: _Job | None) -> None:
        while self._thread.is_alive():
            try:
                self._jobs.put(job, timeout=1)
                return
            except queue.Full:
                continue
        self._raise()

    def _raise(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                self._write(job)
            except OSError as error:
                self._news.put(
                    f"checkpoint of step {job.step} NOT written to {self.folder.path}: "
                    f"{error.strerror or error}; training goes on"
                )
            except BaseException as error:
                self._failure = error
                self._jobs.task_done()
                return
            self._jobs.task_done()

    def _write(self, job: _Job) -> None:
        assert job.payload is not None
        payload, job.payload = _to_host(job.payload, job.made), None
        self.folder.path.mkdir(parents=True, exist_ok=True)
        need, free = payload.nbytes + SPARE, shutil.disk_usage(self.folder.path).free
        if free < need:
            raise OSError(errno.ENOSPC, f"{free >> 20} MiB free, {need >> 20} MiB needed")
        path = checkpoint.write(self.folder, payload, job.errors)
        for name in job.names:
            checkpoint.link(path, name)
        checkpoint.prune(self.folder, self.keep)


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
