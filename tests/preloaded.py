"""Starts programs from a process that has imported what they all import: a start takes half a second of CPU, not five.

Each program is a process of its own, forked, with an environment, arguments and output of its own, and ends as one that
`python -m` has started does. torchrun is one of them: its agent is torch's own, and so are the ways in which it starts,
watches and ends its ranks, but these are forked too, by a process that did so before the agent had threads.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NoReturn

# What programs import, but for what runs as one; senet.system.faults alone reads the environment when it is imported.
SLOW_TO_IMPORT = (
    "nvidia.dali.fn", "torch._dynamo", "torch.distributed.algorithms.ddp_comm_hooks", "torch.distributed.run",
    "launch.flags", "senet.run.run", "senet.data.dali", "senet.system.faults",
)  # fmt: skip
AT_START = ("LD_", "PYTHON", "OMP_", "TRITON", "NULLGPU_LIBRARY")  # what is read only when a process starts
PATIENCE = 30  # seconds that a rank has to end after TERM, as under torchrun
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER: orphans among its descendants become a process's children


class Program:
    """A process that was forked for this one. Has what tests and torchrun's agent use of `subprocess.Popen`."""

    def __init__(self, pid: int, look: Callable[[int], int | None]) -> None:
        """`look` returns the exit code of a process, or None if it still runs."""
        self.pid, self.look = pid, look
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self.look(self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Preloaded:
    """The process that programs are forked from, started for the first one."""

    def __init__(self, root: Path, environment: dict[str, str]) -> None:
        self.root, self.environment = root, environment
        self.process: subprocess.Popen[bytes] | None = None
        self.ended: dict[int, int] = {}  # exit codes by process number

    def suits(self, environment: dict[str, str]) -> bool:
        """Return whether a program with this environment can be forked, and need not be started anew."""
        names = {name for name in environment.keys() | self.environment.keys() if name.startswith(AT_START)}
        return all(environment.get(name) == self.environment.get(name) for name in names)

    def start(
        self, module: str, words: list[str], environment: dict[str, str], out: Path, err: Path, session: bool = True
    ) -> Program:
        """Start a module, or a file of Python, as a program that appends to files, in a session of its own or not."""
        if self.process is None:
            self.line, theirs = Pipe()
            self.process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())], cwd=self.root, env=self.environment,
                stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], start_new_session=True,
            )  # fmt: skip
            theirs.close()
        for file in (out, err):
            file.touch()
        request = {"module": module, "words": words, "environment": environment, "out": str(out), "err": str(err)}
        self.line.send(request | {"session": session})
        while isinstance(answer := self.line.recv(), tuple):
            self._note(answer)
        self.ended.pop(answer, None)  # of an earlier process with this number
        return Program(answer, self._look)

    def run(
        self, module: str, words: list[str], environment: dict[str, str], ranks: int, timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """Run a module, or a file of Python, to its end, and return its exit code and output.

        Of several ranks, each is a program; as under torchrun, the others are ended if one fails.
        """
        several = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
        several |= {"MASTER_PORT": str(free_port())}
        with tempfile.NamedTemporaryFile() as out, tempfile.NamedTemporaryFile() as err:
            programs = []
            for rank in range(ranks):
                own = several | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
                files = Path(out.name), Path(err.name)
                programs.append(self.start(module, words, environment | own, *files, session=False))
            code = wait_for(programs, time.monotonic() + timeout)
            if code is None:
                self.close()
                raise subprocess.TimeoutExpired([module, *words], timeout, out.read(), err.read())
            return subprocess.CompletedProcess([module, *words], code, out.read().decode(), err.read().decode())

    def close(self) -> None:
        """End it, and what it has started but for sessions of their own."""
        if self.process:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.line.close()
            self.process = None

    def _look(self, pid: int) -> int | None:
        while self.process and self.line.poll():
            self._note(self.line.recv())
        return self.ended.get(pid) if self.process else -signal.SIGKILL

    def _note(self, end: tuple[int, int]) -> None:
        self.ended[end[0]] = end[1]


def wait_for(programs: list[Program], deadline: float) -> int | None:
    """Wait for the end of programs and return their exit code, 1 if one of several fails, upon which all are ended.

    Return None if they have not ended at a time of the monotonic clock.
    """
    dying = float("inf")
    while None in (codes := [program.poll() for program in programs]):
        now = time.monotonic()
        if now > deadline:
            return None
        if any(codes) and dying == float("inf"):
            dying = now + PATIENCE
            for program in programs:
                program.terminate()
        if now > dying:
            for program in programs:
                program.kill()
        time.sleep(0.01)
    return codes[0] if len(codes) == 1 else int(any(codes))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


# ----------------------------------------------------------------------------------------- in the process and its forks


def serve(line: Connection) -> dict[str, Any] | None:
    """Start programs, answer with their numbers, and send the numbers and exit codes of those that have ended.

    Return in their processes, with what they are to do; here None, at the end.
    """
    for module in SLOW_TO_IMPORT:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # the pages stay shared: no collection looks at what is there already
    ears, mouth = os.pipe()
    os.set_blocking(mouth, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # it must have a handler to wake this process up
    signal.set_wakeup_fd(mouth)
    while True:
        ready = wait([line, ears])
        if ears in ready:
            os.read(ears, 1 << 12)
            with suppress(ChildProcessError):
                while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                    line.send((ended[0], os.waitstatus_to_exitcode(ended[1])))
        if line in ready:
            try:
                request: dict[str, Any] = line.recv()
            except EOFError:
                return None
            if (pid := os.fork()) == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for file in (ears, mouth):
                    os.close(file)
                line.close()
                return request
            line.send(pid)


def serve_agent(line: Connection) -> dict[str, Any]:
    """Start programs for the agent that this process was forked from, as its children. Return in their processes."""
    while True:
        try:
            request: dict[str, Any] = line.recv()
        except EOFError:
            os._exit(0)
        ears, mouth = os.pipe()
        if between := os.fork():
            os.waitpid(between, 0)  # which makes the program a child of the next process above that adopts orphans
            line.send(int(os.read(ears, 99)))
            os.close(ears)
            os.close(mouth)
            continue
        between = os.getpid()
        if os.fork():
            os._exit(0)
        os.setsid()
        os.write(mouth, str(os.getpid()).encode())
        os.close(ears)
        os.close(mouth)
        line.close()
        while os.getppid() == between:
            time.sleep(0.001)
        return request


def adopt_ranks() -> None:
    """Let torchrun's agent, which this process will be, have its ranks forked."""
    from torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler import SubprocessHandler

    ours, theirs = Pipe()
    if os.fork() == 0:
        ours.close()
        become(serve_agent(theirs))
    theirs.close()
    assert ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0) == 0

    def look(pid: int) -> int | None:
        ended, status = os.waitpid(pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if ended else None

    def start(handler: Any, command: tuple[str, ...], environment: dict[str, str]) -> Program:
        assert command[:2] == (sys.executable, "-u"), command
        words = [word for word in command[2:4] if word != "-m"] + [*command[4:]]
        ours.send({"module": words[0], "words": words[1:], "environment": environment, "session": False})
        return Program(ours.recv(), look)

    SubprocessHandler._popen = start  # type: ignore[method-assign, assignment]


def become(request: dict[str, Any]) -> NoReturn:
    """Be the program of a request, to its end."""
    if request["session"]:
        os.setsid()
    os.environ.clear()
    os.environ.update(request["environment"])
    if os.environ.get("RANK", "0").isdigit():  # otherwise the program will refuse its environment
        importlib.reload(sys.modules["senet.system.faults"])
    if "out" in request:
        for number, name in enumerate((os.devnull, request["out"], request["err"])):
            file = os.open(name, os.O_RDWR | os.O_APPEND)
            os.dup2(file, number)
            os.close(file)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    if request["module"] == "torch.distributed.run" or "--gpus" in request["words"]:
        adopt_ranks()
    sys.argv = [request["module"], *request["words"]]
    sys.orig_argv = [sys.executable, *(["-m"] if not sys.argv[0].endswith(".py") else []), *sys.argv]
    code = 0
    try:
        if request["module"].endswith(".py"):
            runpy.run_path(request["module"], run_name="__main__")
        else:
            runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if code and end.code != code:
            print(end.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    # As at the end of Python, but what was imported before the fork stays: it would be copied to be freed.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    gc.collect()
    with suppress(OSError):
        sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    if wanted := serve(Connection(int(sys.argv[1]))):
        become(wanted)
