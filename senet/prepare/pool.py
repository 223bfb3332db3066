"""Work over processes, with a bar that shows how far it is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from tqdm import tqdm

from senet.errors import RunError, UsageError
from senet.system.processes import end_with_parent, fork_server

Job = TypeVar("Job")
Result = TypeVar("Result")


def each(
    task: Callable[[Job], Result],
    jobs: Iterable[Job],
    processes: int | None,
    label: str,
    total: int,
    count: Callable[[Result], int],
    unit: str = "image",
) -> Iterator[Result]:
    """Yield what `task` makes of each job, in the order in which they are done, by as many `processes` as there are
    cores by default.

    A terminal shows a bar of `total` units, of which each result is `count`. Few jobs are in memory at a time. The
    processes end with this one, however it ends. Raises UsageError for a number of processes below 1, RunError when
    one is killed, and what `task` raises.
    """
    processes = len(os.sched_getaffinity(0)) if processes is None else processes
    if processes < 1:
        raise UsageError(f"--processes {processes}: must be at least 1")
    results = map(task, jobs) if processes == 1 else _spread(task, jobs, processes)
    # disable=None: no bar where nobody looks at a terminal
    with tqdm(total=total, desc=label, unit=f" {unit}s", leave=False, dynamic_ncols=True, disable=None) as bar:
        for result in results:
            yield result
            bar.update(count(result))


def _spread(task: Callable[[Job], Result], jobs: Iterable[Job], processes: int) -> Iterator[Result]:
    context = fork_server(__name__, task.__module__)
    theirs, ours = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(processes, context, initializer=end_with_parent, initargs=(theirs,))
    waiting: set[Future[Result]] = set()
    try:
        for job in jobs:
            waiting.add(pool.submit(task, job))
            while len(waiting) >= 2 * processes:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    except BrokenProcessPool:
        raise RunError(
            "a worker process was killed (out of memory?); run it again to go on, with fewer --processes"
        ) from None
    except BaseException:
        ours.close()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        ours.close()
        theirs.close()
