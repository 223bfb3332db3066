"""A watchdog on each rank: what hangs is found, named and ended, so that torchrun starts the run again.

Every rank writes a sign of life into OUT/health: where it is, on which host. If no rank gets on for more than the limit
of what it is doing, each dumps the stacks of all its threads, says which rank is behind, and exits with code 1.
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
from typing import Any

from senet.data.loader import Batch
from senet.run.stop import Stop
from senet.system.files import write_text
from senet.system.run_folder import RunFolder
from senet.train.hooks import Hooks

EVERY = 2.0  # seconds between two looks, and between signs of life while something is stuck ...
CALM = 30.0  # ... and otherwise, at most: hundreds of ranks share a disk
FEW = 64  # ranks, of which all read each other's signs; of more, one rank of each node does
PHASES = ("start", "data", "compute", "save", "validate", "failed")  # of a step its images come before its arithmetic
PATIENCE = 10.0  # seconds after a TERM, at least, in which a step may still come to its end


class Watchdog(Hooks):
    """`at` notes what this rank is doing; a thread watches that it gets on."""

    def __init__(self, folder: RunFolder, rank: int, ranks: int, limit: float, stop: Stop) -> None:
        """`limit`: seconds that a step may take; start, saving and validation get ten times as long.

        `stop` is told, on the watchdog's thread, if the torchrun that started this process is gone.
        """
        self.folder, self.rank, self.ranks, self.limit, self.stop = folder, rank, ranks, limit, stop
        self.phase, self.step, self.since = "start", -1, time.monotonic()
        self.longest = 0.0  # seconds between two calls of `at` within a step
        self._beats = 0
        self._reads = ranks <= FEW or os.environ.get("LOCAL_RANK", "0") == "0"
        self._signs: dict[int, tuple[dict[str, Any], float]] = {}  # by rank: its last one, and when it was new
        # Without torchrun a parent may well end: nohup, a shell that has been left.
        self._parent = os.getppid() if {"LOCAL_RANK", "TORCHELASTIC_RUN_ID"} & os.environ.keys() else None
        self._withdraw_sign()  # of an earlier start
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def at(self, phase: str, step: int) -> None:
        """Note that this rank enters a phase of a step, counted over the whole run."""
        now = time.monotonic()
        if self.phase in ("data", "compute") and step >= 0:
            self.longest = max(self.longest, min(now - self.since, self.limit))
        self.phase, self.step, self.since = phase, step, now

    def before_data(self, step: int, waited: float) -> None:
        self.at("data", step)

    def before_compute(self, step: int, micro: int, batch: Batch) -> None:
        self.at("compute", step)

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self._withdraw_sign()

    def _watch(self) -> None:
        signed, looked, pause = 0.0, time.monotonic(), min(EVERY, self.limit / 4)
        while not self._ended.wait(pause):
            now = time.monotonic()
            # Ctrl-Z, `scontrol suspend` and a frozen virtual machine stop this thread as well: no time to hang in.
            if now - looked > 2 * pause:
                self.since = min(now, self.since + now - looked - pause)
            stuck, looked = now - self.since, now
            if stuck > self.limit / 8 or now - signed > min(CALM, self.limit / 10):
                self._give_sign(stuck)
                signed = now
            if self._parent not in (None, os.getppid()):
                self._parent = None
                self.stop.launcher_is_gone()
                self._say(": torchrun is gone; saves and stops")
            in_step = self.phase in ("data", "compute", "failed")
            limit = self.limit * (1 if in_step else 10)
            patience = max(PATIENCE, 3 * self.longest)
            if in_step and min(stuck, self.stop.asked_seconds()) > patience:
                self._end(f"was asked to end and does not get on: {stuck:.0f} s", stacks=False)
            if stuck > limit / 2 - pause:  # at half the limit they are being read
                self._read_signs()
            else:
                self._signs.clear()
            if stuck > limit:
                self._end(f"hangs: {stuck:.0f} s")

    def _give_sign(self, stuck: float) -> None:
        self._beats += 1
        sign = {"rank": self.rank, "host": socket.gethostname(), "step": self.step, "phase": self.phase, "stuck": stuck}
        if not self.folder.path.is_dir():  # a run that is refused leaves nothing behind
            return
        with contextlib.suppress(OSError):  # a full disk is no hang
            self.folder.health.mkdir(exist_ok=True)
            write_text(self.folder.sign_of_life(self.rank), json.dumps(sign | {"beat": self._beats}), durable=False)

    def _withdraw_sign(self) -> None:
        with contextlib.suppress(OSError):
            self.folder.sign_of_life(self.rank).unlink()

    def _read_signs(self) -> None:
        """Note which ranks still give signs, once something is stuck: many ranks on a shared disk are many files."""
        now = time.monotonic()
        for rank in range(self.ranks if self._reads else 0):  # not all files: an earlier start may have had more ranks
            with contextlib.suppress(OSError, ValueError):
                sign = json.loads(self.folder.sign_of_life(rank).read_text())
                if rank not in self._signs or self._signs[rank][0] != sign:
                    self._signs[rank] = sign, now

    def _end(self, why: str, stacks: bool = True) -> None:
        self._say(f" {why} in phase {self.phase!r} after {self.step} steps; {self.behind()}")
        with contextlib.suppress(OSError):
            if stacks:
                faulthandler.dump_traceback(sys.stderr)
                with self.folder.stacks(self.rank).open("w") as file:
                    faulthandler.dump_traceback(file)
        os._exit(1)

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError):  # a file on a full disk
            print(f"rank {self.rank} on {socket.gethostname()}{text}", file=sys.stderr, flush=True)

    def behind(self) -> str:
        """Say which rank the others wait for, by the last signs of all."""
        self._read_signs()
        if len(self._signs) < 2:
            return "no other rank gives signs of life"
        now = time.monotonic()
        # Less than the signs have been read for; far more than a shared disk takes to show what others wrote.
        patience = 0.4 * self.limit
        silent = {rank: now - changed for rank, (_, changed) in self._signs.items() if now - changed > patience}
        signs = [sign for rank, (sign, _) in self._signs.items() if not silent or rank in silent]
        last = min(signs, key=lambda sign: (sign["step"], PHASES.index(sign["phase"]), -sign["stuck"]))
        phase = f"in phase {last['phase']!r} after {last['step']} steps"
        why = f"silent for more than {silent[last['rank']]:.0f} s, last {phase}" if silent else phase
        return f"rank {last['rank']} on {last['host']} is behind: {why}"
