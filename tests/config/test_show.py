"""launch.show says on a page what a config comes to, and with --schema what may stand in one."""

from __future__ import annotations

import getpass
import importlib
import json
import os
import resource
import tempfile
from pathlib import Path

import pytest

from launch import guard, show, train
from senet.config import json_schema
from senet.config.files import parse, read_file
from senet.errors import UsageError
from tests.config.test_config import FILES
from tests.helpers import ROOT, run


def test_a_page_says_what_a_config_comes_to(capsys: pytest.CaptureFixture[str]) -> None:
    assert show.main(["cifar10/se_resnet110", "epochs=100"]) == 0
    page = capsys.readouterr().out
    assert len(page.splitlines()) < 15
    for line in (
        "data: {set: cifar10}",
        "schedule: {shape: step, milestones: [82.0, 123.0], gamma: 0.1, warmup: {",
        "size: 1,744,760 parameters, 0.2532 GMACs (multiply-adds, one image of 32 px)",
        "learning rate, as epochs begin: 0.01 in epochs 1-2; 0.1 in epochs 3-82; 0.01 in epochs 83-100\n",
        "steps: 390 an epoch, 39,000 in all, for 50,000 training images",
        "warning: schedule.milestones: 123 are beyond the end of the run (epochs: 100)",
    ):
        assert line in page
    settings = "\n".join(line for line in page.split("\n\n")[0].splitlines())
    assert parse(settings)["net"]["blocks"] == [18, 18, 18]  # the page begins with what could be a config
    assert show.main(["debug/demo", "epochs=90"]) == 0
    page = capsys.readouterr().out
    assert "0.01 in epoch 1; 0.05 in epoch 2; " in page  # the warm-up, the peak, and some of 90 rates
    assert page.count(" in epoch") == show.SHOWN
    assert "steps:" not in page  # nobody knows how many images the folder has
    assert show.main(["se_resnet50", "--full"]) == 0
    assert "lighting: 0.0" in capsys.readouterr().out


def test_a_wrong_key_is_named_within_a_second() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run("launch.show", "se_resnet50", "lr=0.3")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 2
    assert done.stderr == "error: command line: lr: unknown key; did you mean optim.lr?\n"
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert spent < 1, "torch is imported before the config is read"


def test_a_user_without_a_home_gets_a_folder_for_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in containers that run as a number: torch, timm and wandb would end in tracebacks."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)
    for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit):
        guard(lambda: 0)
    assert (getpass.getuser(), Path.home().parent) == ("4000000", tmp_path)
    assert Path.home().stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("program", sorted(file.stem for file in (ROOT / "launch").glob("[a-z]*.py")))
def test_help_has_groups_and_defaults(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(f"launch.{program}")
    if not hasattr(module, "guard") or not hasattr(module, "main"):
        return  # a part of programs
    with pytest.raises(SystemExit):
        module.main(["--help"])
    page = " ".join(capsys.readouterr().out.split())
    assert page.startswith(f"usage: launch.{program} [-h]")
    for flag, default in (("--val-batch N", "128"), ("--device {auto,cpu,cuda}", "auto"), ("--keep-every N", "0")):
        assert f"] [{flag}]" not in page or f"(default: {default})" in page.partition(f" {flag} ")[2]
    for first, group in (("--backend", "images:"), ("--gpus", "GPU"), ("--keep", "checkpoints and trouble:")):
        assert f"[{first} " not in page or group in page


@pytest.mark.parametrize(
    ("flag", "value", "limit"),
    [
        ("workers", "0", "positive"), ("val-batch", "0", "positive"), ("max-bad", "-1", "not be negative"),
        ("hw-decoder-load", "7", "not be over 1"), ("keep-hours", "-1", "not be negative"),
        ("restarts", "-1", "not be negative"), ("save-minutes", "nan", "positive"), ("gpus", "0", "positive"),
    ],
)  # fmt: skip
def test_flags_out_of_their_limits_are_refused(flag: str, value: str, limit: str) -> None:
    with pytest.raises(UsageError, match=f"argument --{flag}: must {'be ' * (limit == 'positive')}{limit}"):
        train.parse(["debug/tiny", f"--{flag}", value])


@pytest.mark.parametrize(
    ("module", "flags"), [("show", []), ("train", []), ("plan", []), ("submit", ["--gpus", 1, "--time", "1:00:00"])]
)
def test_a_missing_config_is_said_to_be_missing(module: str, flags: list[object]) -> None:
    done = run(f"launch.{module}", "optim.lr=0.3", *flags)
    assert done.returncode == 2
    assert done.stderr.startswith("error: which config? Give a file such as configs/imagenet/se_resnet50.yaml")
    assert len(done.stderr.splitlines()) == 1


def test_the_schema_is_what_the_settings_are_and_every_config_names_it() -> None:
    committed = json.loads((ROOT / "configs/schema.json").read_text())
    assert committed == json_schema(), "stale: python -m launch.show --schema > configs/schema.json"
    for file in FILES:
        assert file.read_text().startswith("# yaml-language-server: $schema=../schema.json\n"), file


def test_the_schema_judges_as_the_reader_does() -> None:
    validator = pytest.importorskip("jsonschema").Draft202012Validator(json_schema())
    assert not [f"{file}: {error.message}" for file in FILES for error in validator.iter_errors(read_file(file))]
    good = (
        "net: {se: {ratio: 8}}",
        "net: {timm: resnet50}",
        "schedule: cosine",
        "schedule: {warmup: none}",
        "data: {train_images: 64}",  # of a base that is synthetic
        "variants: {plain: , small: {batch: 64}}",
    )
    wrong = (
        "net: {grups: 32}",
        "schedule: {shape: cosine, gamma: 0.1}",
        "data: {set: cifar10, crop: 32}",
        "variants: {small: {bacth: 64}}",
        "optim: {lr: -1}",
        "lr: 0.1",
    )
    assert [text for text in good + wrong if validator.is_valid(parse(text))] == list(good)
