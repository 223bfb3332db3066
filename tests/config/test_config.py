"""Configs are read strictly; every one that is shipped loads, builds and says how it is run."""

from __future__ import annotations

import itertools
import math
import operator
import random
import re
from pathlib import Path

import pytest
import torch
import yaml

from senet.config import (
    LAMB,
    SE,
    Basic,
    BatchNorm,
    Bottleneck,
    Cifar10,
    Cifar100,
    CifarStem,
    Config,
    ConstantWarmup,
    Cosine,
    Folder,
    LinearWarmup,
    Plateau,
    RandAugment,
    Step,
    Synthetic,
    Timm,
    TimmOptim,
    check,
    difference,
    divide_batch,
    from_dict,
    load,
    to_dict,
    variants,
    warnings,
)
from senet.errors import UsageError
from senet.train.schedule import learning_rate
from tests.helpers import ROOT

FILES = sorted((ROOT / "configs").rglob("*.yaml"))
NAMES = [name for file in FILES for name in dict.fromkeys([str(file), *variants(file)])]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name.partition("configs/")[2])
def test_every_config_loads(name: str) -> None:
    config = load(name)
    assert from_dict(to_dict(config)) == config


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
        ("optim: {lrate: 1}", "optim.lrate: unknown key of optim sgd; did you mean optim.lr?"),
        ("scedule: {}", "scedule: unknown key; did you mean schedule?"),
        ("optim: {lr: fast}", "optim.lr: expected a finite number, got 'fast'"),
        ("optim: {lr: .nan}", "optim.lr: expected a finite number"),
        ("batch: 12.5", "batch: expected a whole number"),
        ("batch: true", "batch: expected a whole number"),
        ("data: {flip: 1}", "data.flip: 1 is not one of true, false, alternate"),
        ("data: {area: [0.1]}", "data.area: expected a list of 2 numbers"),
        (
            "net: {se: {gate: sigmiod}}",
            "net.se.gate: 'sigmiod' is not one of sigmoid, tanh, relu; did you mean 'sigmoid'?",
        ),
        ("net: {family: vgg16}\ndata: {crop: 16}", "data.crop: 16 is out of range: vgg16 needs images of at least 32"),
        ("net: {se: {stages: [6]}}", "net.se.stages: (6,) is out of range: this net's stages are 2 to 5"),
        ("net: {widths: [64]}", "net.widths: (64,) is out of range: net.blocks has 4 stages"),
        ("net: {timm: resnet18, groups: 32}", "net.groups: unknown key of net timm; known: timm, family"),
        ("net: {block: basic, stride_at: conv3x3}", "net.stride_at: unknown key of net resnet basic"),
        ("net: {family: resnest}", "net.family: 'resnest' is not one of resnet, bn_inception, "),
        ("net: {blocks: [3, 4, 6, 3, 1]}", "net.blocks: expected a list of at most 4, got [3, 4, 6, 3, 1]"),
        ("net: {blocks: [3, 4, 6, 0]}", "net.blocks: 0 is out of range: must be at least 1"),
        (
            "schedule: {warmup: {epoch: 5}}",
            "unknown key of schedule.warmup linear; did you mean schedule.warmup.epochs?",
        ),
        ("schedule: {warmup: constant}", "schedule.warmup.epochs: is needed by schedule.warmup constant"),
        (
            "schedule: {shape: cosine, gamma: 0.2}",
            "unknown key of schedule cosine; known: shape, warmup",
        ),
        (
            "schedule: {shape: cosin}",
            "schedule.shape: 'cosin' is not one of step, cosine, poly, plateau; did you mean 'cosine'?",
        ),
        (
            "schedule: cosin",
            "schedule.shape: 'cosin' is not one of step, cosine, poly, plateau; did you mean 'cosine'?",
        ),
        ("schedule: 3", "schedule: expected a mapping of settings, got 3"),
        ("schedule: {milestones: [60, 30]}", "schedule.milestones: (60.0, 30.0) is out of range: must rise"),
        ("schedule: {warmup: {epochs: 100}}", "schedule.warmup.epochs: 100.0 is out of range: must end before the run"),
        ("data: {set: cifar10, resize: 40}", "data.resize: unknown key of data cifar10; known: pad, "),
        ("data: {set: cifar10, crop: 32}", "data.crop: unknown key of data cifar10"),
        ("data: {set: cifar10, augment: {policy: autoaugment}}", "data.augment.policy: unknown key"),
        (
            "data: {augment: {policy: {ops: 3}}}",
            "unknown key of data.augment.policy autoaugment",
        ),
        ("data: {augment: {grow: {start: 128, epochs: 100}}}", "data.augment.grow.epochs: 100.0 is out of range"),
        ("data: {augment: {grow: {start: 240, epochs: 9}}}", "data.augment.grow.start: 240 is out of range"),
        ("lr: 0.3", "lr: unknown key; did you mean optim.lr?"),
        ("net: {ratio: 4}", "net.ratio: unknown key of net resnet bottleneck; did you mean net.se.ratio?"),
        ("optim: {nesterov: true, momentum: 0}", "optim.nesterov: true needs a momentum above 0"),
        (
            "optim: {name: lasr}",
            "optim.name: 'lasr' is not one of sgd, lars, adamw, adam, lamb, timm; did you mean 'lars'?",
        ),
        ("optim: {name: adamw, momentum: 0.9}", "optim.momentum: unknown key of optim adamw"),
        ("optim: {name: lars, nesterov: true, momentum: 0}", "optim.nesterov: true needs a momentum above 0"),
        ("ema: {decay: 1}", "ema.decay: 1 is out of range: must be below 1"),
        ("bn: {freeze: 3, recalibrate: 9}", "bn.recalibrate: would undo bn.freeze"),
        ("bn: {recalibrate: 9}\nfinetune: {freeze: [stem]}", "bn.recalibrate: would undo finetune.freeze"),
        ("net: {zero_init: true, preactivation: true}", "net.zero_init: would silence a pre-activation net's branches"),
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


@pytest.mark.parametrize(
    ("name", "overrides", "key", "value"),
    [
        ("cifar10/se_resnet20", "schedule.shape=cosine", "schedule", Cosine()),
        ("cifar10/se_resnet20", "schedule=cosine", "schedule", Cosine()),
        ("imagenet/mobilenet", "optim.name=lamb optim.betas=[0.9,0.95]", "optim",
            LAMB(lr=0.1, weight_decay=4e-5, betas=(0.9, 0.95))),
        ("imagenet/mobilenet", "optim.arguments.eps=1e-6 optim.timm=lion optim.lr=1e-3 optim.arguments.caution=true",
            "optim", TimmOptim(timm="lion", lr=1e-3, weight_decay=4e-5, arguments={"eps": 1e-6, "caution": True})),
        ("imagenet/mobilenet", "schedule.patience=5", "schedule", Plateau(patience=5)),
        ("imagenet/senet154", "ema={decay: 0.99} bn.sync=true", "bn", BatchNorm(sync=True, freeze=95)),
        ("cifar10/se_resnet110", "schedule.warmup=none", "schedule", Step(milestones=(82, 123))),
        ("cifar10/se_resnet110", "schedule.warmup=null", "schedule", Step(milestones=(82, 123))),
        ("cifar10/se_resnet110", "schedule.warmup=linear", "schedule.warmup", LinearWarmup(epochs=1.0256, lr=0.01)),
        ("cifar10/se_resnet110", "schedule.shape=cosine", "schedule", Cosine(warmup=ConstantWarmup(1.0256, 0.01))),
        ("imagenet/se_resnet50", "net.timm=resnet50", "net", Timm("resnet50")),
        ("imagenet/se_resnext50_32x4d", "net.block=basic", "net",
            Basic(widths=(128, 256, 512, 1024), expansion=2, se=SE())),
        ("imagenet/senet154", "net.stem=cifar", "net.stem", CifarStem()),
        ("imagenet/resnet18", "net.block=bottleneck net.groups=2", "net",
            Bottleneck(blocks=(2, 2, 2, 2), expansion=1, groups=2)),
        ("debug/drill", "data.set=cifar10", "data", Cifar10(augment={"mixup": 0.2})),
        ("debug/drill", "data.augment.policy=autoaugment data.set=cifar100 data.augment={mixup: 0.1}", "data", None),
        ("cifar10/se_resnet20", "data.set=cifar100", "data", Cifar100()),
        ("cifar100/se_resnet20", "data.set=folder", "data", Folder(classes=100, crop=32)),
        ("cifar10/se_resnet20", "data=synthetic data.val_images=64", "data",
            Synthetic(classes=10, crop=32, train_images=50_000, val_images=64)),
        ("debug/demo", "data.set=synthetic data.train_images=64", "data",
            Synthetic(classes=10, crop=64, train_images=64)),
        ("debug/overfit", "schedule.milestones=[30,60] schedule.shape=step", "schedule", Step(milestones=(30, 60))),
        ("debug/overfit", "schedule.gamma=0.2 schedule=step", "schedule", Step(gamma=0.2)),
        ("debug/demo", "data.augment.policy.ops=3 data.augment.policy=randaugment", "data.augment.policy",
            RandAugment(ops=3)),
    ],
)  # fmt: skip
def test_what_was_inherited_for_another_tag_is_dropped(name: str, overrides: str, key: str, value: object) -> None:
    words = re.split(r" (?=[a-z_.]+=)", overrides)
    for order in itertools.permutations(words):
        if value is None:  # what the command line itself writes is never dropped
            with pytest.raises(UsageError, match=r"command line: data.augment.policy: unknown key"):
                load(ROOT / f"configs/{name}.yaml", order)
        else:
            config = load(ROOT / f"configs/{name}.yaml", order)
            assert operator.attrgetter(key)(config) == value


WORDS = (
    "net.family=resnet net.timm=resnet50 net.block=basic net.stem=cifar net.stem.maxpool=ceil net.se=none "
    "net.se.ratio=8 net.groups=2 net=[1] data=cifar10 data.set=synthetic data.set=folder data.classes=10 data.pad=2 "
    "data.crop=0 data=null data.augment.policy=randaugment data.augment.policy.ops=3 data.area=[1] "
    "data.augment.grow={start: 16, epochs: 3} schedule=cosine schedule.shape=step schedule.shape=[1] "
    "schedule.gamma=0.3 schedule.milestones=[10,20] schedule.warmup=none schedule.warmup=constant "
    "schedule.warmup.epochs=3 schedule.warmup.lr=1e-3 schedule.warmup=1 optim.lr=1e-3 optim.lr=.nan optim.lr.x=1 "
    "batch=64 batch=true epochs=300 seed=-1 x=1 1=2 a..b=1 net.=3"
)


def test_whatever_is_overridden_is_read_in_any_order_or_refused_in_one_line() -> None:
    generator, words = random.Random(0), re.split(r" (?=[a-z0-9_.]+=)", WORDS)
    read = 0
    for _ in range(150):
        chosen = {word.partition("=")[0]: word for word in generator.sample(words, 3)}
        file, results, refusals = generator.choice(FILES), [], []
        for order in (list(chosen.values()), list(chosen.values())[::-1]):
            try:
                results.append(load(file, order))
            except UsageError as error:
                results.append(None)
                refusals.append(str(error))
        assert not any("\n" in refusal for refusal in refusals)
        assert results[0] == results[1] or any(one.startswith(two + ".") for one in chosen for two in chosen), chosen
        if results[0]:
            read += 1
            assert from_dict(yaml.safe_load(yaml.safe_dump(to_dict(results[0])))) == results[0]
    assert read > 10


def test_files_drop_what_they_inherit_for_another_tag_too(tmp_path: Path) -> None:
    write(
        tmp_path,
        "data: {augment: {mixup: 0.1, policy: randaugment}}\n"
        "schedule: {milestones: [1, 2], gamma: 0.5, warmup: {lr: 1}}\n"
        "variants: {small: {data: {set: cifar10}}, wrong: {data: {set: cifar10, crop: 32}}}",
        "base.yaml",
    )
    small = load(write(tmp_path, "base: base.yaml:small\nschedule: cosine"))
    assert small.data == Cifar10(augment={"mixup": 0.1})
    assert small.schedule == Cosine(warmup=LinearWarmup(lr=1.0))
    with pytest.raises(UsageError, match=r"base\.yaml:wrong: data\.crop: unknown key of data cifar10"):
        load(tmp_path / "base.yaml:wrong")
    write(tmp_path, "optim: {lrr: 1}", "base.yaml")
    with pytest.raises(UsageError, match=r"base\.yaml: optim\.lrr: unknown key of optim sgd; did you mean optim\.lr\?"):
        load(write(tmp_path, "base: base.yaml\nnet: {timm: resnet50}"))  # names the file to mend


def test_a_config_is_found_by_the_end_of_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    full = load(ROOT / "configs/imagenet/se_resnet50.yaml")
    for name in ("se_resnet50", "se_resnet50.yaml", "imagenet/se_resnet50", "configs/imagenet/se_resnet50.yaml"):
        assert load(name) == full
    assert load("se_resnet50:released").batch == 256
    with pytest.raises(UsageError, match=r"configs/cifar10/se_resnet20\.yaml, .*configs/cifar100/se_resnet20\.yaml"):
        load("se_resnet20")
    with pytest.raises(UsageError, match=r"no such config file; did you mean .*configs/imagenet/se_resnet50\.yaml"):
        load("se_resnet5O")
    write(tmp_path, "batch: 7", "se_resnet50.yaml")  # what is there goes before what is shipped
    assert load("se_resnet50.yaml").batch == 7


def test_schedules_that_never_act_are_named() -> None:
    file = ROOT / "configs/imagenet/se_resnet50.yaml"
    assert warnings(load(file)) == []
    for changes, said in (
        (["epochs=50"], "schedule.milestones: 60, 90 are beyond the end of the run (epochs: 50)"),
        (["schedule=plateau", "epochs=12"], "schedule.patience: 10 epochs are never waited for in a run of 12"),
        (["bn.freeze=100"], "bn.freeze: 100 is beyond the end of the run (epochs: 100)"),
        (["optim=adamw"], "optim.lr: 0.6 is far above what adamw is run with"),
    ):
        (warning,) = warnings(load(file, changes))
        assert said in warning
    assert warnings(load(file, ["schedule=plateau", "epochs=13", "bn.freeze=12", "optim=lars"])) == []


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
    cosine = from_dict({"schedule": {"shape": "cosine", "warmup": {"epochs": 5, "lr": 0.1}}})
    check(cosine)
    rates = [learning_rate(cosine.schedule, 0.6, e, 105) for e in (0, 2.5, 5, 55, 105)]
    assert rates == pytest.approx([0.1, 0.35, 0.6, 0.3, 0.0])
    lars = load(ROOT / "configs/imagenet/resnet50_lars.yaml")
    rates = [learning_rate(lars.schedule, 31.2, e, 72) for e in (0, 12.5, 25, 25 + 47 / 2, 72)]
    assert rates == pytest.approx([0, 15.6, 31.2, 7.8, 0])
    warm = load(ROOT / "configs/cifar10/se_resnet110.yaml")
    assert learning_rate(warm.schedule, 0.1, 399 / 390, 164) == 0.01
    assert learning_rate(warm.schedule, 0.1, 400 / 390, 164) == 0.1
    assert Config().schedule.warmup is None


@pytest.mark.parametrize(("patience", "threshold", "factor"), [(10, 1e-4, 0.1), (0, 0.05, 0.5), (2, 0.0, 0.1)])
def test_a_plateau_is_what_torch_takes_for_one(patience: int, threshold: float, factor: float) -> None:
    schedule = Plateau(patience=patience, threshold=threshold, factor=factor)
    optimiser = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimiser, factor=factor, patience=patience, threshold=threshold, eps=0.0
    )
    generator = random.Random(0)
    losses = [math.exp(-epoch / 30) + 0.3 * generator.random() for epoch in range(90)]
    losses[40] = math.nan
    falls = set()
    for epoch in range(1, 91):
        theirs.step(losses[epoch - 1])
        ours = learning_rate(schedule, 0.1, float(epoch), 400, losses[:epoch])
        assert ours == pytest.approx(optimiser.param_groups[0]["lr"])
        falls.add(ours)
    assert len(falls) > 2
