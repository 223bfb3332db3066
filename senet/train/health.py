"""A watchdog on each rank: what hangs is found, named and ended, so that torchrun starts the run again.

Every rank writes a sign of life into OUT/health: where it is, on which host. Where no rank gets on, for more than the limit of what it
is doing, each dumps the stacks of all its threads, says which rank is behind, and exits with code 1. Collectives have limits of their own
(`world.TIMEOUT`), but tell neither which rank nor why, and a loader that hangs is none.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import socket
import sys
import threading
import time
from pathlib import Path

EVERY = 2.0  # seconds between signs of life
PHASES = ("start", "data", "compute", "save", "validate")  # in a step: its images come before its arithmetic


class Watchdog:
    """`at` says what this rank is doing; a thread watches that it gets on."""

    def __init__(self, out: Path, rank: int, limit: float) -> None:
        """`limit` in seconds: of a step; start, saving and validation get ten times as long."""
        self.folder, self.rank, self.limit = out / "health", rank, limit
        self.began = time.time()
        self.phase, self.step, self.since = "start", -1, time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def at(self, phase: str, step: int) -> None:
        self.phase, self.step, self.since = phase, step, time.monotonic()

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self._file(self.rank).unlink(missing_ok=True)

    def _watch(self) -> None:
        while not self._ended.wait(min(EVERY, self.limit / 4)):
            stuck = time.monotonic() - self.since
            self._sign(stuck)
            if stuck > self.limit * (1 if self.phase in ("data", "compute") else 10):
                self._end(stuck)

    def _sign(self, stuck: float) -> None:
        sign = {"rank": self.rank, "host": socket.gethostname(), "step": self.step, "phase": self.phase, "stuck": stuck, "at": time.time()}
        file = self._file(self.rank)
        if not self.folder.parent.is_dir():  # a run that is refused leaves nothing behind
            return
        with contextlib.suppress(OSError):  # a full disk is no hang
            file.parent.mkdir(exist_ok=True)
            temporary = file.with_suffix(".tmp")
            temporary.write_text(json.dumps(sign))
            os.replace(temporary, file)

    def _file(self, rank: int) -> Path:
        return self.folder / f"rank-{rank}.json"

    def _end(self, stuck: float) -> None:
        where = f"in phase {self.phase!r} after {self.step} steps"
        print(f"rank {self.rank} on {socket.gethostname()} hangs: {stuck:.0f} s {where}; {self.behind()}", file=sys.stderr)
        faulthandler.dump_traceback(sys.stderr)
        with contextlib.suppress(OSError), (self.folder / f"stacks-rank-{self.rank}.txt").open("w") as file:
            faulthandler.dump_traceback(file)
        sys.stderr.flush()
        os._exit(1)

    def behind(self) -> str:
        """Which rank the others wait for, by what all of them last said."""
        signs = []
        for file in self.folder.glob("rank-*.json"):
            with contextlib.suppress(OSError, ValueError):
                sign = json.loads(file.read_text())
                if sign["at"] >= self.began:  # else left behind by an earlier start, perhaps of more ranks
                    signs.append(sign)
        if len(signs) < 2:
            return "no other rank is heard of"
        silent = [sign for sign in signs if time.time() - sign["at"] > 5 * EVERY]
        last = min(silent or signs, key=lambda sign: (sign["step"], PHASES.index(sign["phase"]), -sign["stuck"]))
        why = f"silent for {time.time() - last['at']:.0f} s" if silent else f"in phase {last['phase']!r} after {last['step']} steps"
        return f"rank {last['rank']} on {last['host']} is behind: {why}"
