"""Weights & Biases, never able to fail or stall a run: all talk with it is on a thread of its own. The only importer of wandb."""

from __future__ import annotations

import netrc
import os
import queue
import secrets
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

INIT_SECONDS = 20
CLOSE_SECONDS = 30
BACKLOG = 10_000  # records


def decide(choice: str) -> tuple[bool, str]:
    """Whether to log to W&B, and a sentence that says why."""
    mode = os.environ.get("WANDB_MODE", "")
    if choice == "none":
        return False, "W&B: off (--track none)"
    if mode == "disabled":
        return False, "W&B: off (WANDB_MODE=disabled)"
    if choice == "wandb":
        return True, f"W&B: on (--track wandb{', WANDB_MODE=' + mode if mode else ''})"
    if mode:
        return True, f"W&B: on (WANDB_MODE={mode})"
    if os.environ.get("WANDB_API_KEY") or _login():
        return True, "W&B: on (a login was found; --track none turns it off)"
    return False, "W&B: off (no login and no WANDB_MODE; --track wandb turns it on)"


def _login() -> bool:
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


class WeightsAndBiases:
    """One W&B run for the whole life of a run folder: its id is kept in OUT/wandb_id. Offline when it cannot be reached."""

    def __init__(self, out: Path, name: str, config: dict[str, Any], say: Callable[[str], None]) -> None:
        self.say = say
        self.records: queue.Queue[Mapping[str, Any] | None] = queue.Queue(BACKLOG)
        self.dropped = 0
        self.ok = True
        self.thread = threading.Thread(target=self._work, args=(out, name, config), name="wandb", daemon=True)
        self.thread.start()

    def log(self, record: Mapping[str, Any]) -> None:
        try:
            self.records.put_nowait(record)
        except queue.Full:
            self.dropped += 1
            if self.dropped == 1:
                self.say("W&B: too slow, records are dropped there; log.jsonl has them all")

    def close(self, ok: bool) -> None:
        self.ok = ok
        try:
            self.records.put_nowait(None)
        except queue.Full:
            return
        self.thread.join(CLOSE_SECONDS)
        if self.thread.is_alive():
            self.say(f"W&B: did not finish in {CLOSE_SECONDS} s; `wandb sync` in the run folder sends the rest")

    def _work(self, out: Path, name: str, config: dict[str, Any]) -> None:
        try:
            run = self._start(out, name, config)
            while (record := self.records.get()) is not None:
                kind = record["kind"]
                shared = {key: record[key] for key in ("epoch", "step", "seconds")}
                run.log(shared | {f"{kind}/{key}": value for key, value in record.items() if key != "kind" and key not in shared})
            run.finish(exit_code=0 if self.ok else 1)
        except Exception as error:  # whatever it is, the training goes on
            self.say(f"W&B: off from here on: {type(error).__name__}: {' '.join(str(error).split())[:200]}")

    def _start(self, out: Path, name: str, config: dict[str, Any]) -> Any:
        import wandb

        identity = _identity(out / "wandb_id")
        settings = {"init_timeout": INIT_SECONDS, "console": "off", "silent": True}
        begin: dict[str, Any] = {"id": identity, "resume": "allow", "name": name, "dir": str(out), "config": config}
        begin["project"] = os.environ.get("WANDB_PROJECT", "senet")
        try:
            run = wandb.init(settings=wandb.Settings(**settings), **begin)
        except Exception as error:
            self.say(f"W&B: offline, cannot be reached ({type(error).__name__}); `wandb sync` in {out}/wandb sends it later")
            run = wandb.init(mode="offline", settings=wandb.Settings(**settings), **begin)
        # An axis of our own: after a return to an older checkpoint W&B would drop steps that "must only increase".
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        return run


def _identity(path: Path) -> str:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(secrets.token_hex(8))
        os.replace(temporary, path)
    return path.read_text().strip()
