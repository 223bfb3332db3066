"""Two ranks on null GPUs, with NCCL's calls: steps, contexts, and how a run ends if one rank fails or dies alone."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import final, lines
from tests.nullgpu.conftest import NullGpus
from tests.preloaded import Preloaded

NET = ["net.blocks=[1,1,1]", "precision=bf16"]
DATA = ["data.set=synthetic", "data.train_images=1280", "data.val_images=300"]
RUN = ["configs/cifar10/se_resnet20.yaml", *NET, *DATA, "--track", "none", "--log-every", 5, "--device", "cuda"]


@pytest.fixture(scope="module")
def told(preloaded: Preloaded, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the second rank found in tests/nullgpu/ranks.py, and what the first one has of a net without BN."""
    gpus = NullGpus(preloaded, tmp_path_factory.mktemp("nullgpus"))
    found = gpus.told("tests.nullgpu.ranks", ranks=2)
    first, second = sorted(found, key=lambda line: line["rank"])
    return second | {"without BN": first["without BN"]}


def test_steps_of_two_ranks_wait_for_nothing(told: dict[str, Any]) -> None:
    assert set(told["channels_last"]) == {"channels_last"}
    assert set(told["contiguous triton"]) == {"contiguous"}
    assert told["strays"] == 0


def test_each_rank_opens_a_context_on_its_own_gpu_only(told: dict[str, Any]) -> None:
    assert told["contexts"] == 1


def test_a_net_without_batch_normalisation_can_be_saved(told: dict[str, Any]) -> None:
    assert told["without BN"] == ["cuda:0", "[2, 0]"]


@pytest.mark.slow
def test_a_killed_rank_ends_the_others_at_once_and_the_run_goes_on_to_its_end(
    nullgpus: NullGpus, tmp_path: Path
) -> None:
    """The other rank waits in the device for one that is dead, where no signal handler of Python's is called."""
    words = [*RUN, "epochs=2", "--out", tmp_path / "out", "--hang-minutes", 1]
    done = nullgpus.run("launch.train", *words, ranks=2, restarts=1, SENET_FAULTS="kill@1:14")
    assert done.returncode == 0, done.stderr
    assert "resumed" in done.stderr
    progress = final(tmp_path / "out")["progress"]
    assert (progress["epoch"], progress["images"]) == (2, 2 * 1280)
    assert [line["epoch"] for line in lines(tmp_path / "out", kind="val")] == [1, 2]
    assert "forcefully exiting via 9" not in done.stderr, "torchrun had to wait 30 s for the other rank"


def fails_alone(done: subprocess.CompletedProcess[str]) -> None:
    """Assert that a rank said what it died of, and that no rank had to be killed."""
    assert done.returncode == 1
    assert "error (rank 1 on" in done.stderr
    assert "out of memory" in done.stderr, "nobody learns why"
    assert "hangs" not in done.stderr
    assert re.search(r"exitcode +: 1", done.stderr)


@pytest.mark.slow
def test_a_rank_that_fails_alone_says_why_and_ends_at_once(nullgpus: NullGpus, tmp_path: Path) -> None:
    """NCCL ends a communicator only when all ranks do: a rank that tries to, alone, waits for ever."""
    words = [*RUN, "epochs=1", "--out", tmp_path / "out", "--hang-minutes", 0.5]
    done = nullgpus.run("launch.train", *words, ranks=2, NULLGPU_OUT_OF_MEMORY="1:60")
    fails_alone(done)
    assert "forcefully exiting via 9" not in done.stderr, "the other rank did not end on its own"


@pytest.mark.slow
@pytest.mark.full
def test_evaluation_and_doctor_end_if_a_rank_fails_alone(nullgpus: NullGpus, tmp_path: Path) -> None:
    """Without a watchdog, torchrun ends the rank that waits, after thirty seconds."""
    out = tmp_path / "out"
    assert nullgpus.run("launch.train", *RUN, "epochs=1", "--out", out).returncode == 0
    fails_alone(nullgpus.run("launch.evaluate", out, ranks=2, NULLGPU_OUT_OF_MEMORY="1:4"))
    words = ["--speed", "--seconds", 1, *RUN[:-6], "--device", "cuda"]
    fails_alone(nullgpus.run("launch.doctor", *words, ranks=2, NULLGPU_OUT_OF_MEMORY="1:40"))
