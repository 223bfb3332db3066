"""Weights & Biases, never able to fail or stall a run: a process of its own talks with it (see
`senet.track.wandb_process`).
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import netrc
import os
import queue
import secrets
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import urlparse

from senet.system.files import write_text
from senet.track.tracker import Record, Start, Tracker

CLOSE_SECONDS = 6  # that the end of a run waits for W&B
BACKLOG = 10_000  # records
PROJECT = Path(__file__).parents[2]


log = logging.getLogger(__name__)


def decide(asked: bool) -> tuple[bool, str]:
    """Return whether to log to W&B, and a sentence that says why. `asked`: --track names it."""
    mode = os.environ.get("WANDB_MODE", "")
    if mode == "disabled":
        return False, "W&B: off (WANDB_MODE=disabled)"
    if importlib.util.find_spec("wandb") is None:
        return False, "W&B: off (not installed; pip install wandb)"
    if asked:
        return True, f"W&B: on (--track wandb{', WANDB_MODE=' + mode if mode else ''})"
    if mode:
        return True, f"W&B: on (WANDB_MODE={mode})"
    if key():
        return True, "W&B: on (a login was found; --track none turns it off)"
    return False, "W&B: off (no login and no WANDB_MODE; --track wandb turns it on)"


def key() -> str | None:
    """Return the key that wandb will use: of the environment, or of ~/.netrc for its server. It must not be shown."""
    if given := os.environ.get("WANDB_API_KEY"):
        return given
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        found = netrc.netrc().authenticators(host)
    except (OSError, netrc.NetrcParseError):
        return None
    return found[2] if found else None


class WeightsAndBiases(Tracker):
    """One W&B run for the whole life of a run folder: its id is kept in OUT/wandb_id. Offline if W&B cannot be reached.

    It has no `rewind`: records carry their step, which is the axis of all charts, so the same steps simply come again.
    """

    decide = staticmethod(decide)

    def __init__(self, start: Start) -> None:
        self.out = start.folder.path.resolve()
        self._lines: queue.Queue[str | None] = queue.Queue(BACKLOG)
        self._dropped = False
        begin = {"out": str(self.out), "id": _identity(start.folder.wandb_id), "name": start.name}
        self._lines.put(json.dumps(begin | {"config": start.config, "pid": os.getpid(), "argv": sys.argv}))
        # A session of its own: torchrun and terminals signal whole process groups.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "senet.track.wandb_process"],
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )
        self._threads = [
            threading.Thread(target=work, name="wandb", daemon=True) for work in (self._send, self._listen)
        ]
        for thread in self._threads:
            thread.start()

    def log(self, record: Record) -> None:
        try:
            self._lines.put_nowait(json.dumps(record))
        except queue.Full:
            if not self._dropped:
                self._dropped = True
                log.info("W&B: too slow, records are dropped there; log.jsonl has them all")

    def close(self, ok: bool) -> None:
        """Wait a little for what is not sent. After that the other process goes on with it, also when this one has
        ended.
        """
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(json.dumps({"ok": ok}))
            self._lines.put_nowait(None)
        try:
            self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            log.info(
                "W&B: still sends, on its own; should it not succeed, `wandb sync --include-online` in %s "
                "sends the rest",
                self.out,
            )
        else:
            self._threads[1].join(1)

    def _send(self) -> None:
        assert self._process.stdin
        with contextlib.suppress(OSError), self._process.stdin as pipe:  # without the other process nobody reads
            while (line := self._lines.get()) is not None:
                pipe.write(line + "\n")
                pipe.flush()

    def _listen(self) -> None:
        assert self._process.stdout
        with self._process.stdout as lines:
            for line in lines:
                log.info(line.rstrip())
        if code := self._process.wait():
            log.info("W&B: off from here on: its process ended with code %s", code)


def _identity(path: Path) -> str:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, secrets.token_hex(8))
    return path.read_text().strip()
