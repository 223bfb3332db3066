"""Work over processes, with a bar that shows how far it is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from tqdm import tqdm

from senet.errors import RunError, UsageError
from senet.system.processes import end_with_parent, fork_server
from senet.track.terminal import bar

GLANCE = 0.2  # seconds between two looks at how far the processes are
Job = TypeVar("Job")
Result = TypeVar("Result")

_count: Callable[[int], object] = lambda units: None  # noqa: E731 - told by `count`, in whatever process a task is


def count(units: int = 1) -> None:
    """Note, in a task, that so many of its units are done."""
    _count(units)


def each(
    task: Callable[[Job], Result],
    jobs: Iterable[Job],
    processes: int | None,
    label: str,
    total: int,
    unit: str = "image",
) -> Iterator[Result]:
    """Yield what `task` makes of each job, in the order in which they are done, by as many `processes` as there are
    cores by default.

    A terminal shows a bar of `total` units, which tasks `count`. Few jobs are in memory at a time. The processes end
    with this one, however it ends. Raises UsageError for a number of processes below 1, RunError when one is killed,
    and what `task` raises.
    """
    processes = len(os.sched_getaffinity(0)) if processes is None else processes
    if processes < 1:
        raise UsageError(f"--processes {processes}: must be at least 1")
    with bar(label, total, unit) as shown:
        yield from _alone(task, jobs, shown) if processes == 1 else _spread(task, jobs, processes, shown)


def _alone(task: Callable[[Job], Result], jobs: Iterable[Job], shown: tqdm[Any]) -> Iterator[Result]:
    global _count
    before, _count = _count, shown.update
    try:
        yield from map(task, jobs)
    finally:
        _count = before


def _spread(task: Callable[[Job], Result], jobs: Iterable[Job], processes: int, shown: tqdm[Any]) -> Iterator[Result]:
    context = fork_server(__name__, task.__module__)
    theirs, ours = context.Pipe(duplex=False)
    counted = context.Value("q")
    pool = ProcessPoolExecutor(processes, context, initializer=_begin, initargs=(theirs, counted))
    waiting: set[Future[Result]] = set()
    jobs = iter(jobs)
    try:
        while True:
            waiting |= {pool.submit(task, job) for job in islice(jobs, 2 * processes - len(waiting))}
            if not waiting:
                return
            done, waiting = wait(waiting, GLANCE, FIRST_COMPLETED)
            shown.update(counted.value - shown.n)
            yield from (future.result() for future in done)
    except BrokenProcessPool:
        raise RunError("a worker process was killed (out of memory?); run it again with fewer --processes") from None
    except BaseException:
        ours.close()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        ours.close()
        theirs.close()


def _begin(pipe: Connection, counted: Any) -> None:
    """Begin a process that works."""
    global _count

    def add(units: int) -> None:
        with counted.get_lock():
            counted.value += units

    _count = add
    end_with_parent(pipe)
