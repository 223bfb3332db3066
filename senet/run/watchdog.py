"""A watchdog on each rank: what hangs is found, named and ended, so that torchrun starts the run again.

Every rank writes a sign of life into OUT/health: where it is, on which host. Where no rank gets on, for more than the
limit of what it is doing, each dumps the stacks of all its threads, says which rank is behind, and exits with code 1.
Collectives have limits of their own (`distributed.TIMEOUT`), but tell neither which rank nor why, and a loader that
hangs is none. A rank that waits in the device for a peer that is dead does not hear that it is asked to end: it is
ended once it is clear that its step does not get on. A rank whose torchrun has died asks to stop: nobody would start it
again, or end it. No time of day is believed: clocks jump, and those of two hosts differ.
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
from typing import Any

from senet.data.loader import Batch
from senet.run.stop import Stop
from senet.train.hooks import Hooks

EVERY = 2.0  # seconds between signs of life
PHASES = ("start", "data", "compute", "save", "validate", "failed")  # of a step its images come before its arithmetic
PATIENCE = 10.0  # seconds after a TERM, at least, in which a step may still come to its end


class Watchdog(Hooks):
    """`at` says what this rank is doing; a thread watches that it gets on."""

    def __init__(self, out: Path, rank: int, ranks: int, limit: float, stop: Stop) -> None:
        """`limit` in seconds: of a step; start, saving and validation get ten times as long.

        `stop` is told, on the watchdog's thread, if the torchrun that started this process is gone.
        """
        self.folder, self.rank, self.ranks, self.limit, self.stop = out / "health", rank, ranks, limit, stop
        self.phase, self.step, self.since = "start", -1, time.monotonic()
        self.longest = 0.0  # seconds between two calls of `at` within a step
        self._beats = 0
        self._heard: dict[
            int, tuple[dict[str, Any], float]
        ] = {}  # by rank: its last sign, and when that was seen to change
        # Without torchrun a parent may well end: nohup, a shell that has been left.
        self._parent = os.getppid() if {"LOCAL_RANK", "TORCHELASTIC_RUN_ID"} & os.environ.keys() else None
        self._file(rank).unlink(missing_ok=True)  # of an earlier start
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def at(self, phase: str, step: int) -> None:
        now = time.monotonic()
        if self.phase in ("data", "compute") and step >= 0:
            self.longest = max(self.longest, now - self.since)
        self.phase, self.step, self.since = phase, step, now

    def before_data(self, step: int, waited: float) -> None:
        self.at("data", step)

    def before_compute(self, step: int, micro: int, batch: Batch) -> None:
        self.at("compute", step)

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self._file(self.rank).unlink(missing_ok=True)

    def _watch(self) -> None:
        while not self._ended.wait(min(EVERY, self.limit / 4)):
            stuck = time.monotonic() - self.since
            self._sign(stuck)
            if self._parent not in (None, os.getppid()):
                self._parent = None
                print(f"rank {self.rank} on {socket.gethostname()}: torchrun is gone; saves and stops", file=sys.stderr)
                self.stop.orphaned()
            in_step = self.phase in ("data", "compute", "failed")
            limit = self.limit * (1 if in_step else 10)
            patience = max(PATIENCE, 3 * self.longest)
            if in_step and min(stuck, self.stop.asked_seconds()) > patience:
                self._end(f"was asked to end and does not get on: {stuck:.0f} s", stacks=False)
            if stuck > limit / 2:
                self._listen()
            else:
                self._heard.clear()
            if stuck > limit:
                self._end(f"hangs: {stuck:.0f} s")

    def _sign(self, stuck: float) -> None:
        self._beats += 1
        sign = {"rank": self.rank, "host": socket.gethostname(), "step": self.step, "phase": self.phase, "stuck": stuck}
        file = self._file(self.rank)
        if not self.folder.parent.is_dir():  # a run that is refused leaves nothing behind
            return
        with contextlib.suppress(OSError):  # a full disk is no hang
            file.parent.mkdir(exist_ok=True)
            temporary = file.with_suffix(".tmp")
            temporary.write_text(json.dumps(sign | {"beat": self._beats}))
            os.replace(temporary, file)

    def _file(self, rank: int) -> Path:
        return self.folder / f"rank-{rank}.json"

    def _listen(self) -> None:
        """Note which ranks still give signs of life. Only once something is stuck: many ranks on a shared disk are many
        files.
        """
        now = time.monotonic()
        for rank in range(self.ranks):  # an earlier start, of more ranks, may have left files behind
            with contextlib.suppress(OSError, ValueError):
                sign = json.loads(self._file(rank).read_text())
                if rank not in self._heard or self._heard[rank][0] != sign:
                    self._heard[rank] = sign, now

    def _end(self, what: str, stacks: bool = True) -> None:
        where = f"in phase {self.phase!r} after {self.step} steps"
        print(f"rank {self.rank} on {socket.gethostname()} {what} {where}; {self.behind()}", file=sys.stderr)
        if stacks:
            faulthandler.dump_traceback(sys.stderr)
            with contextlib.suppress(OSError), (self.folder / f"stacks-rank-{self.rank}.txt").open("w") as file:
                faulthandler.dump_traceback(file)
        sys.stderr.flush()
        os._exit(1)

    def behind(self) -> str:
        """Which rank the others wait for, by what all of them last said."""
        self._listen()
        if len(self._heard) < 2:
            return "no other rank is heard of"
        now = time.monotonic()
        patience = (
            0.4 * self.limit
        )  # less than has been listened for; far more than a shared disk takes to show what others wrote
        silent = {rank: now - changed for rank, (_, changed) in self._heard.items() if now - changed > patience}
        signs = [sign for rank, (sign, _) in self._heard.items() if not silent or rank in silent]
        last = min(signs, key=lambda sign: (sign["step"], PHASES.index(sign["phase"]), -sign["stuck"]))
        phase = f"in phase {last['phase']!r} after {last['step']} steps"
        why = f"silent for more than {silent[last['rank']]:.0f} s, last {phase}" if silent else phase
        return f"rank {last['rank']} on {last['host']} is behind: {why}"
