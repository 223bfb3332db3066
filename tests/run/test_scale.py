"""Sixteen ranks on one machine: from the start over the death of one to an evaluation, and what they say meanwhile."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
import yaml

from tests.helpers import TINY, final, lines, run

RANKS = 16
STEPS = 20


@pytest.mark.slow
@pytest.mark.full
def test_sixteen_ranks_survive_the_death_of_one_and_say_little(tmp_path: Path) -> None:
    """Counted on the first rank from the restart, after the first epoch, to the end of the second.

    The steps of an epoch reduce gradients, ask for wishes now and then, and log twice; nothing in them grows with the
    number of ranks but the statistics that a checkpoint gathers.
    """
    data = {"set": "synthetic", "classes": 3, "crop": 32, "train_images": 32 * STEPS, "val_images": 200}
    file, out, told = tmp_path / "scale.yaml", tmp_path / "out", tmp_path / "calls.json"
    file.write_text(yaml.safe_dump(TINY | {"data": data, "batch": 32, "epochs": 2}))
    words = [file, "--device", "cpu", "--track", "none", "--log-every", STEPS // 2, "--out", out]
    began = time.monotonic()
    faults = f"kill@7:{STEPS + STEPS // 2}"
    done = run("tests.run.counted", told, *words, ranks=RANKS, restarts=1, timeout=900, SENET_FAULTS=faults)
    assert done.returncode == 0, done.stderr[-5000:]
    seconds = time.monotonic() - began
    assert re.search(r"resumed .* after epoch 1, step 0", done.stderr)
    assert final(out)["progress"]["images"] == 2 * 32 * STEPS
    assert [line["images"] for line in lines(out, kind="val")] == [200, 200]
    calls = json.loads(told.read_text())
    print(f"{seconds:.0f} s in all; collectives of the first rank from the restart on:")
    for call, count in calls.items():
        print(f"{count:6}  {call}")
    errors = run("launch.evaluate", out, "--device", "cpu", "--json", ranks=RANKS, timeout=600)
    assert errors.returncode == 0, errors.stderr[-5000:]
    assert json.loads(errors.stdout.splitlines()[-1])["images"] == 200
