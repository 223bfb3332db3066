"""Decoding processes end with the trainer, however it ends."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers import ROOT, environment

TRAINER = """
import sys, time
from pathlib import Path
import torch
from senet.config import Folder
from senet.data.source import Source, train_loader
source = Source(Path(sys.argv[1]), "pillow", workers=2)
loader = train_loader(Folder(classes=3, crop=32, resize=40), source, 12, 12, 0, 0, 1, torch.device("cpu"))
batches = loader.batches(0, 0)
next(batches)
print([process.pid for process in loader.backend.loader._iterator._workers], flush=True)
if sys.argv[2] == "killed":
    time.sleep(1e6)
batches.close()
loader.close()
"""


def alive(number: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


@pytest.mark.parametrize("how", ["killed", "closed"])
def test_no_decoding_process_is_left_behind(images: Path, how: str) -> None:
    with subprocess.Popen([sys.executable, "-c", TRAINER, str(images), how], cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True) as trainer:  # fmt: skip # noqa: E501
        assert trainer.stdout is not None
        workers = [int(number) for number in trainer.stdout.readline().strip("[]\n").split(",")]
        assert len(workers) == 2
        if how == "killed":
            assert all(map(alive, workers))
            trainer.kill()
        assert trainer.wait(60) == (-9 if how == "killed" else 0)
    deadline = time.monotonic() + 30
    while any(map(alive, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
