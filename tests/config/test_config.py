"""Configs are read strictly; every one that is shipped loads, builds and says how it is run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from senet.config import Config, check, difference, divide_batch, from_dict, load, to_dict, variants
from senet.errors import UsageError
from senet.models import build
from senet.train.schedule import learning_rate
from tests.helpers import ROOT

FILES = sorted((ROOT / "configs").rglob("*.yaml"))
NAMES = [name for file in FILES for name in dict.fromkeys([str(file), *variants(file)])]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name.partition("configs/")[2])
def test_every_config_loads_and_builds(name: str) -> None:
    config = load(name)
    assert from_dict(to_dict(config)) == config
    with torch.device("meta"):
        build(config.net, config.data.classes)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_head_gives_command_and_results(file: Path) -> None:
    head = "".join(line for line in file.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert re.search(rf"-m launch\.train {re.escape(str(file.relative_to(ROOT)))}", head)
    assert "paper:" in head
    assert "ours:" in head


@pytest.mark.parametrize(
    ("table", "rows"),
    [("ratio", 6), ("squeeze", 3), ("excitation", 4), ("stages", 5), ("place", 5), ("conv3x3", 3), ("nosqueeze", 3)],
)
def test_ablations_hold_the_rows_of_their_table(table: str, rows: int) -> None:
    configs = [load(name) for name in variants(ROOT / f"configs/ablations/{table}.yaml")]
    assert len({str(to_dict(config)) for config in configs}) == rows
    assert sum(config.net.se is None for config in configs) == 1
    for config in configs:
        assert config.net.se is None or not config.net.se.bias
        assert (config.epochs, config.schedule.milestones, config.optim.label_smoothing) == (270, (125, 200, 250), 0.1)
        only_se = difference(config, load(ROOT / "configs/ablations/base.yaml"))
        assert all(line.startswith("net.se") for line in only_se)


def write(folder: Path, text: str, name: str = "a.yaml") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_base_variants_and_overrides(tmp_path: Path) -> None:
    write(tmp_path, "optim: {lr: 1e-4, momentum: 0.8}\nvariants:\n  big: {batch: 64}\n", "base.yaml")
    file = write(
        tmp_path,
        "base: base.yaml:big\nnet: {se: {}}\nvariants:\n  tanh: {net: {se: {gate: tanh}}}\n  "
        "plain: {net: {se: null}}\n",
    )
    config = load(f"{file}:tanh", ["optim.lr=3e-1", "net.widths=[8, 16, 32, 64]", "optim.nesterov=true"])
    assert (config.optim.lr, config.optim.momentum, config.batch, config.optim.nesterov) == (0.3, 0.8, 64, True)
    assert config.net.se is not None
    assert config.net.se.gate == "tanh"
    assert config.net.widths == (8, 16, 32, 64)
    assert load(f"{file}:plain").net.se is None
    assert load(file).optim.lr == 1e-4
    assert variants(file) == [f"{file}:tanh", f"{file}:plain"]
    assert load(f"{file}:plain", ["net.se.ratio=8"]).net.se.ratio == 8  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: {lrate: 1}", "optim.lrate: unknown key"),
        ("scedule: {}", "scedule: unknown key; did you mean 'schedule'?"),
        ("optim: {lr: fast}", "optim.lr: expected a finite number, got 'fast'"),
        ("optim: {lr: .nan}", "optim.lr: expected a finite number"),
        ("batch: 12.5", "batch: expected a whole number"),
        ("batch: true", "batch: expected a whole number"),
        ("data: {flip: 1}", "data.flip: expected true or false"),
        ("data: {area: [0.1]}", "data.area: expected a list of 2 numbers"),
        (
            "net: {se: {gate: sigmiod}}",
            "net.se.gate: 'sigmiod' is not one of sigmoid, tanh, relu; did you mean 'sigmoid'?",
        ),
        ("net: {se: {stages: [6]}}", "net.se.stages: (6,) is out of range: this net's stages are 2 to 5"),
        ("net: {widths: [64]}", "net.widths: (64,) is out of range: net.blocks has 4 stages"),
        (
            "net: {timm: resnet18, groups: 32, widths: [32, 32, 32, 32]}",
            "net.widths: (32, 32, 32, 32) would have no effect: net.timm is set",
        ),
        ("net: {block: basic, stride_at: conv3x3}", "net.stride_at: 'conv3x3' would have no effect: a basic block"),
        ("schedule: {warmup_epochs: 5}", "schedule.warmup_epochs: 5.0 would have no effect: schedule.warmup is none"),
        ("schedule: {shape: cosine, gamma: 0.2}", "schedule.gamma: 0.2 would have no effect: schedule.shape is cosine"),
        ("data: {set: cifar10, crop: 32, resize: 40}", "data.resize: 40 would have no effect: data.set is cifar10"),
        ("data: {set: cifar10}", "set data.crop: 32"),
        ("net: {zero_init: true, preactivation: true}", "net.zero_init: would silence each branch for good"),
        ("net: [1]", "net: expected a mapping"),
        ("a: [", "not valid YAML"),
        ("- 1", "must be a mapping"),
        ("base: a.yaml", "base leads back to itself"),
        ("base: nowhere.yaml", "no such config file"),
        ("seed: !!python/object/apply:os.system [ls]", "not valid YAML"),
    ],
)
def test_errors_name_the_key_and_the_remedy(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        load(write(tmp_path, text))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_variants_and_overrides_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path, "variants: {one: {}, two: {}}")
    with pytest.raises(UsageError, match="no variant 'tow'; did you mean 'two'"):
        load(f"{file}:tow")
    with pytest.raises(UsageError, match="written key=value"):
        load(file, ["optim.lr"])


def test_batches_divide_or_say_what_does() -> None:
    assert divide_batch(1024, 8) == (128, 1)
    assert divide_batch(1024, 8, 40) == (32, 4)
    assert divide_batch(96, 2, 20) == (16, 3)
    with pytest.raises(
        UsageError, match="batch: 1000 does not divide over 3 ranks; use batch=999, 1002 or 1, 2, 4, 5, 8"
    ):
        divide_batch(1000, 3)


def test_schedules() -> None:
    paper = load(ROOT / "configs/imagenet/se_resnet50.yaml")
    rates = [learning_rate(paper.schedule, paper.optim.lr, e, 100) for e in (0, 29.99, 30, 60, 89.99, 90)]
    assert rates == pytest.approx([0.6, 0.6, 0.06, 0.006, 0.006, 0.0006])
    cosine = from_dict({"schedule": {"shape": "cosine", "warmup": "linear", "warmup_epochs": 5, "warmup_lr": 0.1}})
    check(cosine)
    rates = [learning_rate(cosine.schedule, 0.6, e, 105) for e in (0, 2.5, 5, 55, 105)]
    assert rates == pytest.approx([0.1, 0.35, 0.6, 0.3, 0.0])
    warm = load(ROOT / "configs/cifar10/se_resnet110.yaml")
    assert learning_rate(warm.schedule, 0.1, 399 / 390, 164) == 0.01
    assert learning_rate(warm.schedule, 0.1, 400 / 390, 164) == 0.1
    assert Config().schedule.warmup == "none"
