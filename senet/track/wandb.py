"""Weights & Biases, never able to fail or stall a run: `senet.track.wandb_process` talks with it."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import queue
import secrets
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from senet.errors import RunError
from senet.system.files import write_text
from senet.system.run_folder import RunFolder
from senet.track.tracker import Record, Results, Start, Tracker

CLOSE_SECONDS = 6  # that the end of a run waits for W&B
UPLOAD_SECONDS = 20  # that W&B has for what is not sent when the run ends
CHECKPOINT_SECONDS = 120  # both of that for a run whose best checkpoint is sent
BACKLOG = 10_000  # records
ANSWER_SECONDS = 60  # that wandb may take to say which login it will use: it may lie on a slow disk
CHECKOUT = Path(__file__).parents[2]

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
    found = login()
    if found.mode == "disabled":
        return False, "W&B: off (by `wandb disabled`; `wandb enabled` undoes it)"
    if found.mode == "offline":
        return True, "W&B: on (offline, by `wandb offline`; `wandb online` undoes it)"
    if found.source:
        return True, f"W&B: on (a login for {found.host} was found; --track none turns it off)"
    return False, f"W&B: off ({found.error or 'no login and no WANDB_MODE'}; --track wandb turns it on)"


@dataclass(frozen=True)
class Login:
    """What wandb will use, by its own account. The key must not be shown."""

    host: str
    mode: str  # online, offline or disabled
    source: str = ""  # where the login was found; empty without one
    key: str | None = None  # of logins that are a key
    error: str = ""


def login() -> Login:
    """Ask wandb which login it will use: it knows of more places than anyone else."""
    try:
        return Login(**json.loads(_answer("login", patience=ANSWER_SECONDS)))
    except (RunError, ValueError, TypeError) as error:
        return Login("", "online", error=str(error))


def attach(folder: RunFolder, page: Path) -> str:
    """Show an HTML page in the W&B run of a run folder, and return where that is to be seen. Raises RunError."""
    if not folder.wandb_id.exists():
        raise RunError(f"{folder}: nothing of this run went to W&B, so there is nothing to attach the page to")
    return _answer("attach", str(folder.path.resolve()), str(page.resolve()), patience=CHECKPOINT_SECONDS)


def _answer(*words: str, patience: float) -> str:
    """Return the last line that wandb, in a process of its own, prints when it is asked. Raises RunError."""
    command = [sys.executable, "-m", "senet.track.wandb_process", *words]
    how: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "errors": "replace"}
    try:
        return str(subprocess.run(command, cwd=CHECKOUT, timeout=patience, check=True, **how).stdout.splitlines()[-1])
    except subprocess.CalledProcessError as error:
        raise RunError(f"wandb fails: {error.stderr.strip()[-200:]}") from None
    except (OSError, subprocess.SubprocessError, LookupError) as error:
        raise RunError(f"wandb does not answer: {type(error).__name__}") from None


class WeightsAndBiases(Tracker):
    """One W&B run for the whole life of a run folder: its id is kept in OUT/wandb_id. Offline if W&B cannot be reached.

    It has no `rewind`: records carry their step, which is the axis of all charts, so the same steps simply come again.
    """

    decide = staticmethod(decide)

    def __init__(self, start: Start) -> None:
        self.out = start.folder.path.resolve()
        self._checkpoint = start.folder.checkpoints.best.resolve() if start.log_checkpoints else None
        self._lines: queue.Queue[str | None] = queue.Queue(BACKLOG)
        self._dropped = False
        begin = {
            "out": str(self.out),
            "id": _identity(start.folder.wandb_id),
            "usual": {"run_name": start.name, "run_group": start.group},
            "labels": dict(start.labels),
            "config": {**start.config, **start.facts},
            "files": [str(path.resolve()) for path in start.folder.documents()],
            "upload_seconds": CHECKPOINT_SECONDS if start.log_checkpoints else UPLOAD_SECONDS,
            "pid": os.getpid(),
            "command": start.facts.get("command", []),
        }
        self._lines.put(json.dumps(begin, default=str))
        # A session of its own: torchrun and terminals signal whole process groups.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "senet.track.wandb_process"],
            cwd=CHECKOUT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )
        self._listener = threading.Thread(target=self._listen, name="wandb", daemon=True)
        for thread in (self._listener, threading.Thread(target=self._send, name="wandb", daemon=True)):
            thread.start()

    def log(self, record: Record) -> None:
        self._put(record)

    def finish(self, results: Results) -> None:
        self._put({"results": asdict(replace(results, pictures=()))})  # it reads their files

    def _put(self, message: Record) -> None:
        try:
            self._lines.put_nowait(json.dumps(message))
        except queue.Full:
            if not self._dropped:
                self._dropped = True
                log.info("W&B: too slow, records are dropped there; log.jsonl has them all")

    def close(self, ok: bool) -> None:
        """Wait a little for what is not sent, longer for a checkpoint; then the other process goes on alone."""
        checkpoint = self._checkpoint if ok else None
        if checkpoint:
            log.info("W&B: takes %s; this waits for it %d s at most", checkpoint.name, CHECKPOINT_SECONDS)
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(json.dumps({"ok": ok, "checkpoint": checkpoint and str(checkpoint)}))
            self._lines.put_nowait(None)
        try:
            self._process.wait(CHECKPOINT_SECONDS if checkpoint else CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            rest = f"should it not succeed, `wandb sync --include-online` in {self.out} sends the rest"
            log.info("W&B: still sends, on its own; %s", rest)
        else:
            self._listener.join(1)

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
    """Return the id of the run: of WANDB_RUN_ID, as sweeps give it, otherwise the one of its first start."""
    given = os.environ.get("WANDB_RUN_ID")
    if given or not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, given or secrets.token_hex(8))
    return path.read_text().strip()
