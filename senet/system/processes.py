"""Processes of this machine: those that descend from one, and workers that end with the process that uses them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import tempfile
import threading
import time
from multiprocessing import get_context, util
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def family(number: int) -> list[int]:
    """Return a process and all its living descendants."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):  # it has just ended
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found = {number}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found)


def cpu_seconds() -> float:
    """Return the CPU-seconds of this process and all its descendants, also of those that it has waited for."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    ticks = 0
    for number in set(family(os.getpid())) - {os.getpid()}:
        with contextlib.suppress(OSError):  # it has just ended
            ticks += sum(map(int, Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[11:15]))
    return time.process_time() + ended.ru_utime + ended.ru_stime + ticks / os.sysconf("SC_CLK_TCK")


def allow_open_files() -> None:
    """Let this process open as many files as its hard limit allows; the soft one is often 1,024, or 256."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees. glibc gives large blocks back to the kernel, which clears each
    page once more when the next step asks for it: up to a tenth of the CPU time of a small net.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):  # glibc's; musl has none
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_MMAP_THRESHOLD, 2**30)


def masks_of_ranks() -> list[set[int]]:
    """Return the cores that each rank on this host may use, this one's too.

    torchrun may have bound each to cores of its own (--numa-binding), or left all of them to every rank.
    """
    masks = []
    parent = os.getppid()
    if int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > 1:
        for child in Path(f"/proc/{parent}/task").glob("*/children"):
            for number in map(int, child.read_text().split()):
                with contextlib.suppress(OSError):
                    if b"LOCAL_RANK=" in Path(f"/proc/{number}/environ").read_bytes():
                        masks.append(os.sched_getaffinity(number))
    return masks or [os.sched_getaffinity(0)] * int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def share_of_cores(own: set[int], ranks: list[set[int]]) -> int:
    """Return a rank's share of its `own` cores, each of which all those `ranks` share that may use it; at least 1."""
    return max(1, int(sum(1 / max(1, sum(core in mask for mask in ranks)) for core in own) + 1e-9))


def fork_server(*modules: str) -> Any:
    """Return a multiprocessing context whose processes are forked from a server that has imported `modules`.

    Forked from this process they would inherit locks that its threads may hold. They ignore Ctrl-C and TERM, which are
    for the process that uses them: it still needs them to finish. Let them call `end_with_parent`.
    """
    _keep_sockets_short()
    context: Any = get_context("forkserver")
    context.set_forkserver_preload(["senet.system.ignore_signals", *modules])
    return context


def _keep_sockets_short() -> None:
    """Put the sockets by which processes meet elsewhere if $TMPDIR is too long: their paths end at 107 bytes."""
    if len(os.fsencode(tempfile.gettempdir())) > 60:  # /pymp-xxxxxxxx/listener-xxxxxxxx comes after it
        usual, tempfile.tempdir = tempfile.tempdir, "/tmp"  # noqa: S108
        util.get_temp_dir()  # is made once, for this process and those it starts
        tempfile.tempdir = usual


def end_with_parent(pipe: Connection) -> None:
    """End this process, in the midst of its work, when nobody holds the other end of `pipe` any more.

    A process that is killed tells nobody, and the server that forked this one lives as long as its forks.
    """

    def watch() -> None:
        pipe.poll(None)  # nothing is ever sent: it returns when the other end is closed
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
