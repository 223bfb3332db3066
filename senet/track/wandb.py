"""Weights & Biases, never able to fail or stall a run: a process of its own talks with it (see
`senet.track.wandb_process`).
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import netrc
import os
import queue
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from senet.system.files import write_text

CLOSE_SECONDS = 6  # that the end of a run waits for W&B
BACKLOG = 10_000  # records
PROJECT = Path(__file__).parents[2]


def decide(choice: str) -> tuple[bool, str]:
    """Whether to log to W&B, and a sentence that says why."""
    mode = os.environ.get("WANDB_MODE", "")
    if choice == "none":
        return False, "W&B: off (--track none)"
    if mode == "disabled":
        return False, "W&B: off (WANDB_MODE=disabled)"
    if importlib.util.find_spec("wandb") is None:
        return False, "W&B: off (not installed; pip install wandb)"
    if choice == "wandb":
        return True, f"W&B: on (--track wandb{', WANDB_MODE=' + mode if mode else ''})"
    if mode:
        return True, f"W&B: on (WANDB_MODE={mode})"
    if key():
        return True, "W&B: on (a login was found; --track none turns it off)"
    return False, "W&B: off (no login and no WANDB_MODE; --track wandb turns it on)"


def key() -> str | None:
    """The key that wandb will use: of the environment, or of ~/.netrc for its server. Never to be told."""
    if given := os.environ.get("WANDB_API_KEY"):
        return given
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        found = netrc.netrc().authenticators(host)
    except (OSError, netrc.NetrcParseError):
        return None
    return found[2] if found else None


class WeightsAndBiases:
    """One W&B run for the whole life of a run folder: its id is kept in OUT/wandb_id. Offline when it cannot be
    reached.

    A run that goes back to an earlier checkpoint needs nothing of it: records carry their step, which is the axis of
    all charts, so the same steps simply come again.
    """

    def __init__(self, out: Path, name: str, config: dict[str, Any], say: Callable[[str], None]) -> None:
        self.out, self.say = out.resolve(), say
        self._lines: queue.Queue[str | None] = queue.Queue(BACKLOG)
        self._dropped = False
        begin = {"out": str(self.out), "id": _identity(out / "wandb_id"), "name": name, "config": config}
        self._lines.put(json.dumps(begin | {"pid": os.getpid(), "argv": sys.argv}))
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

    def log(self, record: Mapping[str, Any]) -> None:
        try:
            self._lines.put_nowait(json.dumps(record))
        except queue.Full:
            if not self._dropped:
                self._dropped = True
                self.say("W&B: too slow, records are dropped there; log.jsonl has them all")

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
            self.say(
                "W&B: still sends, on its own; should it not succeed, `wandb sync --include-online` in "
                f"{self.out} sends the rest"
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
                self.say(line.rstrip())
        if code := self._process.wait():
            self.say(f"W&B: off from here on: its process ended with code {code}")


def _identity(path: Path) -> str:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, secrets.token_hex(8))
    return path.read_text().strip()
