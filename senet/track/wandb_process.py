"""The process that talks with Weights & Biases, apart from the training. The only importer of wandb.

`python -m senet.track.wandb_process` reads JSON lines: first what `wandb.init` needs, then records, {"results": ...} if
the run comes to its end, last {"ok": true or false, "checkpoint": a path or null}. It prints what the training is to
say. wandb writes all that it is given to OUT/wandb and sends it from there: what never arrives can be sent later. The
end of its input ends this process, if only because the training was killed; signals do not, for schedulers send them to
all of a job.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import shlex
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from senet.system.lock import InUse, acquire
from senet.system.run_folder import RunFolder, facts_of

INIT_SECONDS = 20  # for the server's first answers, while the training goes on
HURRY_SECONDS = 2  # for the same, once the training has ended
LOCK_SECONDS = 60  # for the process of an earlier start to end
FLUSH_SECONDS = 1  # between writes to OUT/wandb
ENVIRONMENT = dict(os.environ)  # before wandb adds to it
LOCK: Any = None  # held until this process ends
VOICE = 1  # file descriptor of what the training reads


class Inbox:
    """Lines from the training, read as they come, and the means to begin anew with all of them."""

    def __init__(self, earlier: int | None) -> None:
        """`earlier`: a file descriptor with what was read before this process began anew, and is now offline."""
        self.lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.begun = threading.Event()  # W&B has taken over: no way back
        self._sources = [0] if earlier is None else [earlier, 0]
        self._patient = earlier is not None
        self._seen = bytearray()
        self._taking = threading.Lock()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        rest = b""
        for source in self._sources:
            while chunk := self._take(source):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self.lines.put(line)
        self.lines.put(b"")
        if not self._patient and not self.begun.wait(HURRY_SECONDS):
            say("offline, no answer before the end; `wandb sync --include-online` in the run folder sends it later")
            self.again()

    def _take(self, source: int) -> bytes:
        select.select([source], [], [])
        with self._taking:  # nothing is read that `again` would not hand on
            chunk = os.read(source, 1 << 16)
            if not self.begun.is_set():
                self._seen += chunk
            return chunk

    def again(self) -> NoReturn:
        """Begin anew, offline, by exec: wandb.init can be neither interrupted nor, if it failed, called again."""
        with self._taking:
            spool = tempfile.TemporaryFile()  # noqa: SIM115
            spool.write(self._seen)
            spool.seek(0)
            os.set_inheritable(spool.fileno(), True)
            os.dup2(VOICE, 1)
            os.execve(  # noqa: S606
                sys.executable, [sys.executable, "-m", "senet.track.wandb_process", str(spool.fileno())], ENVIRONMENT
            )


def say(text: str) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more
        os.write(VOICE, f"W&B: {' '.join(text.split())[:300]}\n".encode())


def _relay(errors: int) -> None:
    """Say, once each, what wandb itself warns of."""
    said = set()
    with os.fdopen(errors, errors="replace") as lines:
        for line in lines:
            _, level, text = line.partition("WARNING ") if "WARNING " in line else line.partition("ERROR ")
            if level and text not in said and "wandb.save" not in text:  # which warns that it makes links
                said.add(text)
                say(text)


def _take_voice() -> None:
    """Keep standard output to this process: what wandb starts must not hold it open, nor die of its end."""
    global VOICE
    VOICE = os.dup(1)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    errors, end = os.pipe()
    os.dup2(end, 2)
    threading.Thread(target=_relay, args=(errors,), daemon=True).start()


def main(arguments: list[str]) -> None:
    if arguments == ["login"]:
        print(json.dumps(_login()))
        return
    if arguments[:1] == ["attach"]:
        print(_attach(Path(arguments[1]), Path(arguments[2])))
        return
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _take_voice()
    inbox = Inbox(int(arguments[0]) if arguments else None)
    if first := inbox.lines.get():
        try:
            _work(json.loads(first), inbox, offline=bool(arguments))
        except Exception as error:
            say(f"off from here on: {type(error).__name__}: {error}")


def _login() -> dict[str, str | None]:
    """Return the fields of `senet.track.wandb.Login`."""
    from wandb.errors import AuthenticationError
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib import wbauth

    settings = wandb_setup.singleton().settings
    found: dict[str, str | None] = {"host": settings.base_url, "mode": settings.mode}
    try:
        host = wbauth.HostUrl(settings.base_url, app_url=settings.app_url)
        login = wbauth.authenticate_session(host=host, source="", prompt=False, update_session=False)
    except AuthenticationError as error:
        return found | {"error": str(error)}
    return found | {"source": str(login), "key": getattr(login, "api_key", None)} if login else found


def _attach(out: Path, page: Path) -> str:
    """Show an HTML page in the W&B run of a run folder, and return where that is to be seen."""
    global LOCK
    import wandb

    folder = RunFolder(out)
    LOCK = acquire(folder.wandb_lock, LOCK_SECONDS)
    run = wandb.init(settings=_settings(out, folder.wandb_id.read_text().strip()))
    # Offline it does not know how far its steps have come, and the server drops steps that it has already.
    after = len(folder.log.read_text().splitlines()) + 1 if run.offline else None
    run.log({"report": wandb.Html(str(page), inject=False)}, step=after)
    run.finish()
    return f"`wandb sync {shlex.quote(run.settings.sync_dir)}` sends it" if run.offline else str(run.url)


def _work(begin: dict[str, Any], inbox: Inbox, offline: bool) -> None:
    run = _start(begin, inbox, offline)
    inbox.begun.set()
    if not run.offline:
        say(run.url)
    for file in begin["files"]:  # below the name of the run folder: W&B has a config.yaml of its own
        _dispensable(run.save, file, base_path=Path(begin["out"]).parent, policy="now", glob=False)
    ok = False
    while line := inbox.lines.get():
        record = json.loads(line)
        if "results" in record:
            _dispensable(_log_results, run, record["results"])
            continue
        if "ok" in record:
            ok = record["ok"]
            if record["checkpoint"]:
                _dispensable(_log_checkpoint, run, Path(record["checkpoint"]))
            continue
        kind, shared = record.pop("kind"), {key: record.pop(key) for key in ("epoch", "step", "seconds")}
        run.log(shared | {f"{kind}/{key}": value for key, value in record.items()})
    kept = run.offline and not offline  # otherwise it was said why, and what sends it
    folder = run.settings.sync_dir
    run.finish(exit_code=0 if ok else 1)
    if kept:
        say(f"kept offline; `wandb sync {shlex.quote(folder)}` sends it")


def _dispensable(act: Callable[..., object], *arguments: object, **named: object) -> None:
    """Do what the rest does not depend on."""
    try:
        act(*arguments, **named)
    except Exception as error:
        say(f"left out: {type(error).__name__}: {error}")


def _log_results(run: Any, results: dict[str, Any]) -> None:
    """Log the fields of a `senet.track.tracker.Results`."""
    import wandb

    pictures = [[wandb.Image(path), *rest] for path, *rest in results["examples"]["rows"]]
    rows = {name: results[name]["rows"] for name in ("classes", "confusion")} | {"examples": pictures}
    tables = {name: wandb.Table(columns=results[name]["columns"], data=data) for name, data in rows.items()}
    if results["matrix"]:  # W&B's own chart, as of wandb.plot.confusion_matrix
        of = dict(zip(("Actual", "Predicted", "nPredictions"), results["confusion"]["columns"], strict=True))
        title = {"title": "Validation: confusion"}
        tables["confusion"] = wandb.plot_table("wandb/confusion_matrix/v1", tables["confusion"], of, title)
    run.log(results["position"] | {f"val/{name}": table for name, table in tables.items()})


def _log_checkpoint(run: Any, path: Path) -> None:
    import wandb

    artifact = wandb.Artifact(f"model-{run.id}", type="model", metadata=facts_of(path))
    artifact.add_file(str(path), policy="immutable", skip_cache=True)  # not copied to a disk that may be small
    run.log_artifact(artifact, aliases=["best"])


def _start(begin: dict[str, Any], inbox: Inbox, offline: bool) -> Any:
    global LOCK
    out = Path(begin["out"])
    later = f"`wandb sync --include-online` in {out} sends it later"
    if not offline:
        try:
            LOCK = acquire(RunFolder(out).wandb_lock, LOCK_SECONDS)
        except InUse as holder:  # one that a killed training left behind may still be at it
            say(f"offline, for {holder} still sends to this run; {later}")
            inbox.again()
    program, sys.argv = _program(begin["command"])  # what W&B shows as the run's command
    more = {
        "program": program,
        "finish_timeout": begin["upload_seconds"],
        "x_transaction_log_flush_interval": FLUSH_SECONDS,
        "x_stats_pid": begin["pid"],
    }
    try:
        import wandb

        settings = _settings(out, begin["id"], begin["usual"], **more, **begin["labels"])
        if offline:
            settings.mode = "offline"
        run = wandb.init(config=begin["config"], settings=settings)
    except Exception as error:
        if offline:
            raise
        say(f"offline, cannot be reached ({type(error).__name__}: {error}); {later}")
        inbox.again()
    # An axis of our own: after a return to an older checkpoint W&B would drop steps that "must only increase".
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run


def _settings(out: Path, identity: str, usual: dict[str, str] | None = None, **more: Any) -> Any:
    """Return the settings of the W&B run of a run folder; `usual` ones count if a person has not set them otherwise."""
    # Its reports about itself go to the same server, and would hold up the end for ten seconds if that hangs.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("WANDB_DATA_DIR", str(out / "wandb"))  # what tables and pages hold, until it is sent
    import wandb
    from wandb.sdk import wandb_setup

    known = wandb_setup.singleton().settings  # of the environment and of wandb's own files
    usual = {name: value for name, value in ({"project": "senet"} | (usual or {})).items() if not getattr(known, name)}
    return wandb.Settings(
        root_dir=str(out),
        run_id=identity,
        resume="allow",
        init_timeout=INIT_SECONDS,
        console="off",
        silent=True,
        **{name: value for name, value in (usual | more).items() if value},
    )


def _program(command: list[str]) -> tuple[str, list[str]]:
    """Return a command as wandb has it: the program, and what would be sys.argv."""
    names = [Path(command[0]).name, *command[1:]] if command else []
    end = next((number for number, word in enumerate(names, 1) if word.startswith("launch.")), len(names))
    program = shlex.join(names[:end])
    return program, [program, *names[end:]]


if __name__ == "__main__":
    main(sys.argv[1:])
