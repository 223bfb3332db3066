"""Starts programs from a process that has imported what they all import: a start takes half a second of CPU, not five.

Each program is a process of its own, forked, with an environment, arguments and output of its own, and ends as one that
`python -m` has started does. Of several ranks, each is one; as under torchrun, the others are ended if one fails.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

# Nothing of the project that reads the environment when it is imported, as senet.system.faults does.
SLOW_TO_IMPORT = ("nvidia.dali.fn", "torch._dynamo", "torch.distributed.algorithms.ddp_comm_hooks", "launch.flags")
AT_START = ("LD_", "PYTHON", "OMP_", "TRITON", "NULLGPU")  # what is read only when a process starts
PATIENCE = 30  # seconds that a rank has to end after TERM, as under torchrun


class Preloaded:
    """The process that programs are forked from, started for the first one."""

    def __init__(self, root: Path, environment: dict[str, str]) -> None:
        self.root, self.environment = root, environment
        self.process: subprocess.Popen[str] | None = None

    def suits(self, environment: dict[str, str]) -> bool:
        """Return whether a program with this environment can be forked, and need not be started anew."""
        names = {name for name in environment.keys() | self.environment.keys() if name.startswith(AT_START)}
        return all(environment.get(name) == self.environment.get(name) for name in names)

    def run(
        self, module: str, words: list[str], environment: dict[str, str], ranks: int, timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """Run a module, or a file of Python, to its end as a program, and return its exit code and output."""
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", __name__], cwd=self.root, env=self.environment, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
            )  # fmt: skip
        assert self.process.stdin
        assert self.process.stdout
        with tempfile.NamedTemporaryFile() as out, tempfile.NamedTemporaryFile() as err:
            request = {"module": module, "words": words, "environment": environment, "ranks": ranks}
            self.process.stdin.write(json.dumps(request | {"out": out.name, "err": err.name}) + "\n")
            self.process.stdin.flush()
            if not select.select([self.process.stdout], [], [], timeout)[0]:
                self.close()
                raise subprocess.TimeoutExpired([module, *words], timeout, out.read(), err.read())
            code = json.loads(self.process.stdout.readline())
            return subprocess.CompletedProcess([module, *words], code, out.read().decode(), err.read().decode())

    def close(self) -> None:
        """End it, and what it has started."""
        if self.process:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.communicate()
            self.process = None


def serve() -> dict[str, Any] | None:
    """Run one program after the other. Return in their processes, with what they are to do; here None, at the end."""
    for module in SLOW_TO_IMPORT:
        importlib.import_module(module)
    for line in sys.stdin:
        request = json.loads(line)
        ranks, running = request["ranks"], {}
        if ranks > 1:
            request["environment"] |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
            request["environment"] |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        for rank in range(ranks):
            pid = os.fork()
            if pid == 0:
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
                return request | {"environment": request["environment"] | own}
            running[pid] = None
        print(wait_for(running), flush=True)
    return None


def wait_for(running: dict[int, Any]) -> int:
    """Wait for the end of processes and return their exit code: 1 if one of several fails, upon which all are ended."""
    several, worst, deadline = len(running) > 1, 0, float("inf")
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG) if deadline < float("inf") else os.wait()
        if pid in running:
            del running[pid]
            code = os.waitstatus_to_exitcode(status)
            worst = worst or code
            if code and several and deadline == float("inf"):
                deadline = time.monotonic() + PATIENCE
                for other in running:
                    os.kill(other, signal.SIGTERM)
        elif time.monotonic() > deadline:
            for other in running:
                os.kill(other, signal.SIGKILL)
        elif pid == 0:
            time.sleep(0.02)
    return 1 if several and worst else worst


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def become(request: dict[str, Any]) -> None:
    """Be the program of a request."""
    os.environ.clear()
    os.environ.update(request["environment"])
    for number, name in enumerate((os.devnull, request["out"], request["err"])):
        file = os.open(name, os.O_RDWR | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.argv = [request["module"], *request["words"]]
    if request["module"].endswith(".py"):
        runpy.run_path(request["module"], run_name="__main__")
    else:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    if wanted := serve():
        become(wanted)
