"""The measured choice: what works is timed, what fails is out with its reason, the winner is remembered and the same on
all ranks.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from senet.config import Config
from senet.distributed import World
from senet.errors import RunError, UsageError
from senet.execution.execution import Execution
from senet.run.step_plan import decide
from senet.run.voice import speaking
from senet.system.timing import Timing
from senet.train.autotune import fastest, measure, table, tune
from senet.train.largest_batch import largest_batch, least_batch
from tests.train.test_step import CONFIG, CPU, on_gpu, on_two_ranks

ALONE = World(0, 1, CPU)
PLAIN, NCHW, TRITON = Execution(), Execution("contiguous"), Execution(tail="triton")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without a compiler, whose choices are therefore few; its empty cache."""
    monkeypatch.setenv("PATH", "")
    for name in ("CXX", "TRITON_INTERPRET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/senet"


def tuned(config: Config, micro_batch: int = 4) -> tuple[Execution, list[str]]:
    told: list[str] = []
    with speaking(ALONE, told.append):
        return tune(config, ALONE, micro_batch, seconds=0.2), told


def test_the_winner_is_measured_once_for_each_circumstance(bare: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, told = tuned(CONFIG)
    assert torch.equal(torch.get_rng_state(), before)
    (line,) = (line for line in told if "chosen" in line)
    assert line.startswith(f"{first}  ")
    (file,) = bare.iterdir()
    kept = json.loads(file.read_text())
    assert sorted(line.partition("  ")[0] for line in told[2:]) == sorted(kept["choices"])
    assert {"channels_last", "contiguous"} <= set(kept["choices"])
    assert kept["execution"] == first.to_dict()
    assert kept["micro_batch"] == 4

    file.write_text(json.dumps(kept | {"execution": NCHW.to_dict()}))  # told apart from a new measurement
    again, told = tuned(replace(CONFIG, seed=7, epochs=9, batch=60))
    assert (again, len(told)) == (NCHW, 1)
    assert str(file) in told[0]

    for other, micro_batch in (
        (CONFIG, 6),
        (replace(CONFIG, precision="bf16"), 4),
        (replace(CONFIG, net=replace(CONFIG.net, se=None)), 4),
    ):
        tuned(other, micro_batch)
    assert len(list(bare.iterdir())) == 4


@pytest.mark.parametrize("content", ["", "[]", '{"execution": {"layout": "chwn"}}', "\0"])
def test_a_damaged_memory_is_measured_again(bare: Path, content: str) -> None:
    tuned(CONFIG)
    (file,) = bare.iterdir()
    file.write_text(content)
    _, told = tuned(CONFIG)
    assert len(told) > 2
    assert json.loads(file.read_text())["execution"]


def test_a_cache_that_cannot_be_written_is_no_failure(bare: Path) -> None:
    bare.parent.write_text("a file where the folder should be")
    _, told = tuned(CONFIG)
    assert any(line.startswith("warning: ") and "not written" in line for line in told)


def test_a_choice_that_fails_is_out_and_says_why(bare: Path) -> None:
    timings = measure(CONFIG, ALONE, 4, [PLAIN, TRITON, NCHW], 0.1)
    assert [len(timing.seconds) > 0 for timing in timings.values()] == [True, False, True]
    assert "needs a GPU" in str(timings[TRITON].failure)
    lines = table(timings, fastest(timings), 4).splitlines()
    assert any(line.startswith("channels_last triton") and "out: UsageError" in line for line in lines)
    with pytest.raises(RunError, match=r"not one execution .* needs a GPU"):
        fastest(measure(CONFIG, ALONE, 4, [TRITON], 0.1))


def test_equals_go_to_the_plainest() -> None:
    kinds = [PLAIN, NCHW, Execution(compile=True)]
    for times, winner in (([1.01, 1.0, 3.0], 0), ([1.1, 1.0, 1.005], 1), ([2.0, 1.0, 0.5], 2)):
        timings = {kind: Timing([seconds]) for kind, seconds in zip(kinds, times, strict=True)}
        assert fastest(timings) == kinds[winner]


@pytest.mark.slow
def test_all_ranks_choose_alike(bare: Path) -> None:
    told = on_two_ranks("tune", PATH="", XDG_CACHE_HOME=str(bare.parent))
    assert told[0]["chosen"] == told[1]["chosen"]
    assert [bool(rank["lines"]) for rank in sorted(told, key=lambda rank: rank["rank"])] == [True, False]
    assert all("rank 1" in rank["reason"] for rank in told)  # what failed there alone is out everywhere
    assert len(list(bare.iterdir())) == 1


def test_a_largest_batch_is_looked_for_on_gpus_only() -> None:
    with pytest.raises(UsageError, match="--largest-batch auto: needs a GPU"):
        largest_batch(CONFIG, ALONE, PLAIN)


def test_one_image_alone_is_too_few_for_maps_of_one_pixel(tmp_path: Path) -> None:
    """Batch normalisation raises ValueError for a single value: no size of batch for a net with such maps."""
    small = replace(CONFIG, data=replace(CONFIG.data, crop=2), batch=2)
    assert [least_batch(CONFIG), least_batch(small)] == [1, 2]
    with pytest.raises(UsageError, match="batch: 2 gives a rank one image at once"):
        decide(small, ALONE, tmp_path / "execution.json", {}, 1, measure=False)
    plan = decide(small, ALONE, tmp_path / "execution.json", {}, 2, measure=False)
    assert plan.micro_batch == 2
    plan.save(tmp_path / "execution.json")
    assert decide(small, ALONE, tmp_path / "execution.json", {}, None, measure=False) == plan
    for damaged in (b"", b"{}", b"[1]", b'{"execution": 1, "micro_batch": 2}', b"\xff"):
        (tmp_path / "execution.json").write_bytes(damaged)
        with pytest.raises(UsageError, match=r"execution\.json: damaged"):
            decide(small, ALONE, tmp_path / "execution.json", {}, None, measure=False)


@pytest.mark.gpu
@on_gpu
def test_the_largest_batch_of_a_gpu_divides_the_batch() -> None:
    config = replace(CONFIG, batch=96)
    assert largest_batch(config, World(0, 1, torch.device("cuda", 0)), PLAIN) == 96
