"""Worker processes start wherever temporary files are kept, and end with the process that uses them; programs may open
many files.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.helpers import ROOT, environment

WORK = """
import os, tempfile
from concurrent.futures import ProcessPoolExecutor
from senet.system.processes import end_with_parent, fork_server
if __name__ == "__main__":
    context = fork_server()
    theirs, ours = context.Pipe(duplex=False)
    with ProcessPoolExecutor(1, context, initializer=end_with_parent, initargs=(theirs,)) as pool:
        print(pool.submit(len, "senet").result(), pool.submit(tempfile.gettempdir).result())
        ours.close()
"""


def test_a_folder_for_temporary_files_may_have_a_long_name(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    (tmp_path / "work.py").write_text(WORK)
    done = subprocess.run(
        [sys.executable, tmp_path / "work.py"],
        env=environment(TMPDIR=str(folder), PYTHONPATH=str(ROOT)),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["5", str(folder)], done.stderr


def test_programs_and_their_workers_may_open_as_many_files_as_they_are_allowed_to() -> None:
    """A soft limit of 256 or 1,024 is usual: shards, workers and sockets of many ranks are more."""
    told = "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    worker = f"subprocess.call([sys.executable, '-c', {told!r}])"
    main = f"import subprocess, sys; from launch import guard; guard(lambda: {worker})"
    done = subprocess.run(
        ["bash", "-c", 'ulimit -Sn 256 && exec "$@"', "bash", sys.executable, "-c", main],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    soft, hard = done.stdout.strip(" ()\n").split(", ")
    assert soft == hard != "256"
