"""One process on a null GPU: what waits, which layouts are computed, what memory is kept."""

from __future__ import annotations

from typing import Any

import pytest

from tests.nullgpu.conftest import NullGpus
from tests.preloaded import Preloaded


@pytest.fixture(scope="module")
def told(preloaded: Preloaded, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the quick checks found, by name."""
    gpus = NullGpus(preloaded, tmp_path_factory.mktemp("nullgpus"))
    found = gpus.told("tests.nullgpu.checks", "executions", "augmentations", "small_batches", "saves")
    return {line["check"]: line for line in found}


def result(told: dict[str, Any], check: str) -> Any:
    assert "error" not in told[check], told[check]["error"]
    assert told[check]["strays"] == 0, "kernels on another device than the rank's"
    return told[check]["result"]


def test_no_step_waits_for_the_device_in_any_kind_of_execution(told: dict[str, Any]) -> None:
    """Under torch's sync debug mode; the loader's thread prepares batches meanwhile, also beside a graph's capture."""
    assert set(result(told, "executions")) == {
        "channels_last",
        "contiguous",
        "channels_last triton",
        "channels_last graph",
        "channels_last analytic compile",
        "channels_last triton frozen",
        "channels_last graph frozen",
    }


def test_convolutions_compute_in_the_layout_of_the_execution(told: dict[str, Any]) -> None:
    for execution, layouts in result(told, "executions").items():
        if "compile" not in execution:
            assert set(layouts) == {execution.split()[0]}, execution


@pytest.mark.parametrize("kind", ["erase", "mix", "colour", "rotate"])
def test_augmentation_waits_for_nothing_and_keeps_the_layout(told: dict[str, Any], kind: str) -> None:
    assert set(result(told, "augmentations")[kind]) == {"channels_last"}


def test_a_loader_of_small_images_asks_the_device_for_many_at_once(told: dict[str, Any]) -> None:
    """A small net's step is one launch, of a graph: a loader that asks for each batch by itself would hold it up."""
    assert result(told, "small_batches") < 6


def test_a_written_checkpoint_leaves_nothing_on_the_device(told: dict[str, Any]) -> None:
    found = result(told, "saves")
    assert found["after"] <= found["before"]


@pytest.mark.slow
def test_the_search_for_the_largest_batch_frees_its_nets_and_finds_one_that_fits(nullgpus: NullGpus) -> None:
    """Beside the snapshot of a checkpoint and a loader's batches; cuBLAS may keep its workspace of 32 MiB."""
    (found,) = nullgpus.told("tests.nullgpu.checks", "probes", NULLGPU_GIB="13.6")
    assert "error" not in found, found["error"]
    assert found["result"]["found"] > 1
    assert found["result"]["left"] <= 32 << 20


@pytest.mark.slow
@pytest.mark.full
def test_no_step_waits_for_the_device_in_all_executions_and_precisions(nullgpus: NullGpus) -> None:
    (found,) = nullgpus.told("tests.nullgpu.checks", "all_executions")
    assert "error" not in found, found["error"]
    assert len(found["result"]) == 24
    (found,) = nullgpus.told("tests.nullgpu.checks", "tuning")
    assert "error" not in found, found["error"]
