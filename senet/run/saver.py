"""Checkpoints written behind the training's back: a snapshot in memory, then a thread that writes it."""

from __future__ import annotations

import errno
import queue
import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from senet.run import checkpoint

SPARE = 16 << 20  # bytes left free on the disk


@dataclass
class _Job:
    step: int
    payload: dict[str, Any]  # let go once it is copied to the host: it takes as much of the device as the training
    facts: dict[str, Any]
    names: list[str]
    made: torch.cuda.Event | None


class Saver:
    """One checkpoint may wait while another is written; a third makes the training wait.

    A disk that is full, or fails, costs the checkpoint and not the run: `news` says so, and what was written before
    stays.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        """`keep`: how many of the newest checkpoints stay."""
        self.folder, self.keep = folder, keep
        self._jobs: queue.Queue[_Job | None] = queue.Queue(1)
        self._news: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="saver", daemon=True)
        self._thread.start()

    def save(self, step: int, payload: dict[str, Any], facts: dict[str, Any], names: list[str]) -> None:
        """Take a snapshot of `payload` and return; it is also to be found under `names` (best.pt, say) once it is
        written.
        """
        copy = snapshot(payload)
        made = None
        if torch.cuda.is_initialized():
            made = torch.cuda.Event()
            made.record()
        self._put(_Job(step, copy, facts, names, made))

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
        """What went wrong since the last call."""
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
                    f"checkpoint of step {job.step} NOT written to {self.folder}: "
                    f"{error.strerror or error}; training goes on"
                )
            except BaseException as error:
                self._failure = error
                self._jobs.task_done()
                return
            self._jobs.task_done()

    def _write(self, job: _Job) -> None:
        payload, job.payload = _to_host(job.payload, job.made), {}
        self.folder.mkdir(parents=True, exist_ok=True)
        need, free = _bytes(payload) + SPARE, shutil.disk_usage(self.folder).free
        if free < need:
            raise OSError(errno.ENOSPC, f"{free >> 20} MiB free, {need >> 20} MiB needed")
        path = checkpoint.write(self.folder, job.step, payload, job.facts)
        for name in job.names:
            checkpoint.mark(path, name)
        checkpoint.prune(self.folder, self.keep)


def snapshot(tree: Any) -> Any:
    """A copy of nested containers that what happens to the tensors in them does not reach."""
    if isinstance(tree, Tensor):
        return tree.detach().clone()
    if isinstance(tree, dict):
        return {key: snapshot(value) for key, value in tree.items()}
    return type(tree)(snapshot(value) for value in tree) if isinstance(tree, list | tuple) else tree


def _to_host(tree: Any, made: torch.cuda.Event | None) -> Any:
    """On a stream of its own: on the common one the copies would queue with the training's kernels."""
    if made is None:
        return tree
    stream = torch.cuda.Stream(made.device)  # this thread's own device is GPU 0
    stream.wait_event(made)
    with torch.cuda.stream(stream):
        return _copied(tree)


def _copied(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return tree.cpu()
    if isinstance(tree, dict):
        return {key: _copied(value) for key, value in tree.items()}
    return type(tree)(_copied(value) for value in tree) if isinstance(tree, list | tuple) else tree


def _bytes(tree: Any) -> int:
    if isinstance(tree, Tensor):
        return tree.nbytes
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ()
    return sum(_bytes(part) for part in parts)
