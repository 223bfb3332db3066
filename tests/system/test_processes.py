"""Worker processes start wherever temporary files are kept, and end with the process that uses them."""

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
