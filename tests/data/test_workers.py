"""Decoding threads and processes: how many a rank has, and that they end with the trainer, however it ends."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from senet.system.processes import share_of_cores
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
    words = [sys.executable, "-c", TRAINER, str(images), how]
    with subprocess.Popen(words, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True) as trainer:
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


NODE, ALL = set(range(96)), set(range(192))


@pytest.mark.parametrize(
    ("own", "ranks", "share"),
    [
        (ALL, [ALL] * 8, 24),  # not bound
        (NODE, [NODE] * 4 + [ALL - NODE] * 4, 24),  # to the node of its GPU: two nodes
        (set(range(24)), [set(range(24 * n, 24 * n + 24)) for n in range(8)], 24),  # to cores of its own
        (set(range(24)), [set(range(24))] * 2 + [set(range(24, 48))] * 6, 12),
        ({0}, [{0}] * 8, 1),
        (ALL, [ALL], 192),
    ],
)
def test_a_rank_takes_its_share_of_the_cores_that_it_is_bound_to(
    own: set[int], ranks: list[set[int]], share: int
) -> None:
    """torchrun may have narrowed its cores already (--numa-binding): they are not to be divided once more."""
    assert share_of_cores(own, ranks) == share


RANK = """
import os, sys, time
from pathlib import Path
from senet.system.processes import masks_of_ranks
folder, rank = Path(sys.argv[1]), int(os.environ["LOCAL_RANK"])
cores = sorted(os.sched_getaffinity(0))
os.sched_setaffinity(0, {cores[rank % len(cores)]})
(folder / str(rank)).touch()
while len(list(folder.iterdir())) < 2:
    time.sleep(0.01)
print(sorted(map(sorted, masks_of_ranks())) == sorted([[cores[0]], [cores[1 % len(cores)]]]))
time.sleep(1)  # for the other to find it
"""


def test_ranks_of_a_host_know_each_others_cores(tmp_path: Path) -> None:
    settings = [environment(LOCAL_RANK=rank, LOCAL_WORLD_SIZE="2") for rank in ("0", "1")]
    words = [sys.executable, "-c", RANK, str(tmp_path)]
    ranks = [subprocess.Popen(words, cwd=ROOT, env=more, stdout=subprocess.PIPE, text=True) for more in settings]
    assert [rank.communicate(timeout=60)[0].strip() for rank in ranks] == ["True", "True"]
