"""One voice: what ranks have to say is said once, with the rank named only if the ranks differ."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from senet.distributed import World
from senet.run.voice import speaking
from tests.helpers import run_text

PROGRAM = """
import logging, sys
from senet import distributed
from senet.run.voice import speaking

def main():
    world = distributed.start("cpu")
    log = logging.getLogger("senet.data.somewhere")
    with speaking(world, lambda text: print("said:", text, flush=True)) as voice:
        log.warning("an index is %s", "stale")
        log.warning("an index is stale")  # of the other split
        if world.rank:
            log.warning("a disk is slow")
        voice.gather()
        if world.rank == 2:
            log.info("only here")
        voice.gather()
    world.close()

main()
"""


def test_three_ranks_speak_with_one_voice(tmp_path: Path) -> None:
    done = run_text(PROGRAM, tmp_path, ranks=3)
    assert done.returncode == 0, done.stderr
    first, second, third = (line for line in done.stdout.splitlines() if line.startswith("said:"))
    assert first == "said: warning: an index is stale"
    assert second.startswith("said: warning: a disk is slow (rank 1 on ")
    assert ", rank 2 on " in second
    assert third.startswith("said: only here (rank 2 on ")


def test_a_voice_ends_with_its_context(caplog: pytest.LogCaptureFixture) -> None:
    told: list[str] = []
    log = logging.getLogger("senet.somewhere")
    with speaking(World(0, 1, torch.device("cpu")), told.append):
        log.info("stopped after %d %%", 5)
        log.info("stopped after %d %%", 5)  # only warnings are said once
    log.warning("afterwards")
    assert told == ["stopped after 5 %", "stopped after 5 %"]
    assert [record.getMessage() for record in caplog.records] == ["afterwards"]
