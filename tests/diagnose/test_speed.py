"""launch.doctor --speed names what bounds, where one thing is made to."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from launch.doctor import main
from senet import config, models
from senet.data.source import Source
from senet.diagnose import speed
from senet.diagnose.speed import Speed
from senet.distributed import World
from senet.errors import UsageError
from senet.execution.execution import Execution
from senet.run.step_plan import StepPlan
from tests.helpers import TINY, run

TELLING = Speed(
    batch=64,
    data=0.1,
    net=0.2,
    step=0.21,
    all_reduce=0.02,
    together=0.22,
    gradients=10**8,
    busy=0.9,
    waited=0.0,
    slowest=(0, 1.0),
)


@pytest.fixture
def large_images(tmp_path: Path) -> Path:
    """Two classes of a few megapixels each."""
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((2400, 1800), Image.Resampling.BICUBIC)
    for number in range(24):
        path = tmp_path / f"large/{'train' if number % 2 else 'val'}/class{number % 3}/{number:03}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, quality=90)
    return tmp_path / "large"


def test_large_images_and_a_small_net_are_bound_by_data(tiny: Path, large_images: Path) -> None:
    done = run("launch.doctor", "--speed", tiny, "--data", large_images, "--seconds", 0.5, "--workers", 1, "batch=4")
    assert done.returncode == 0, done.stderr
    assert "bound by data: the loader takes " in done.stdout
    assert "all-reduce" not in done.stdout
    waits = re.search(r"all together .* waits for data (\d+) % of the time", done.stdout)
    assert waits is not None, done.stdout
    assert int(waits[1]) > 40


def test_small_images_and_a_large_net_are_bound_by_the_net(tiny: Path, images: Path) -> None:
    words = [
        tiny,
        "--data",
        images,
        "--seconds",
        0.5,
        "--largest-batch",
        2,
        "net.widths=[64,128]",
        "data.crop=64",
        "data.resize=72",
    ]
    done = run("launch.doctor", "--speed", *words, ranks=2)
    assert done.returncode == 0, done.stderr
    assert re.search(
        "bound by (the net: the loader could feed |communication: )", done.stdout
    )  # on busy cores ranks wait for each other
    assert re.search(r"all-reduce alone +- +[\d.]+ +[\d.]+ MB of gradients", done.stdout)


def test_speed_needs_a_config_and_data(tiny: Path) -> None:
    with pytest.raises(UsageError, match="--speed needs a config"):
        main(["--speed"])
    with pytest.raises(UsageError, match="--data DIR is needed"):
        main(["--speed", str(tiny)])


@pytest.mark.parametrize(
    ("changes", "bound", "words"),
    [
        ({}, "net", "precision=bf16"),
        ({"data": 0.5, "busy": 0.2}, "data", "storage is likely what bounds"),
        ({"data": 0.5, "busy": 0.2}, "data", "more workers: --workers 2"),
        ({"data": 0.5}, "data", "--backend dali decodes faster"),
        ({"data": 0.5}, "data", "launch.prepare shards FROM TO --decoded --short-side 256; a core feeds"),
        ({"step": 0.3}, "communication", "compress=bf16"),
        ({"together": 0.6}, "net", "together they take 2.9 times as long"),
        ({"slowest": (3, 1.5)}, "net", "rank 3's loader takes 1.5 times the mean"),
    ],
)
def test_advice_fits_what_bounds(
    changes: dict[str, object], bound: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    found = replace(TELLING, **changes)  # type: ignore[arg-type]
    assert found.bound == bound
    told = speed.page(
        found,
        config.from_dict(TINY),
        Source(backend="pillow", workers=1),
        StepPlan(Execution(), 8, 1),
        World(0, 8, torch.device("cuda")),
    )
    assert words in told


def test_the_endless_loader_goes_from_epoch_to_epoch(images: Path) -> None:
    """A set of five steps is measured for longer than that, and the net as it is trained: with its frozen stem."""
    settings = config.from_dict(TINY | {"finetune": {"freeze": ["stem"]}})
    world = World(0, 1, torch.device("cpu"))
    found = speed.measure(
        world, settings, Source(images, backend="pillow", workers=1), StepPlan(Execution(), 12, 1), 0.3
    )
    assert found.step == found.net
    assert found.all_reduce == 0
    net = models.build(settings.net, 3)
    trained = set(net.parameters()) - set(models.parts(net)["stem"])
    assert found.gradients == 4 * sum(part.numel() for part in trained)
    assert all(value > 0 for value in (found.data, found.net, found.together))
