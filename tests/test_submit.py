"""What is submitted is checked first, and is said to a shell as it was said by the person."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from senet import config
from senet.errors import UsageError
from senet.run.changes import check_folder
from senet.slurm import Site, read_site, seconds
from tests.helpers import ROOT, TINY, run

SITE = """
partition=gpu account='my lab' qos= cpus=12 mem=16G data= python=python3 host_python=python3
sbatch_options=(--exclusive --constraint='h100&ib')
container=() srun_options=() numa=node patience=90
enter() { echo 'not before the job'; exit 1; }
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    file = tmp_path / "site.sh"
    file.write_text(SITE)
    return file


def submit(*words: object, **more: str) -> subprocess.CompletedProcess[str]:
    return run("launch.submit", *words, **more)


def options(script: str) -> list[str]:
    """As sbatch reads them: up to the first line that is no comment."""
    head = itertools.takewhile(lambda line: line.startswith("#"), script.splitlines())
    return [line.removeprefix("#SBATCH ") for line in head if line.startswith("#SBATCH ")]


def test_what_is_asked_of_slurm(tmp_path: Path, site: Path) -> None:
    out = tmp_path / "out"
    words = [
        "configs/imagenet/se_resnet50.yaml",
        "--nodes",
        4,
        "--gpus",
        8,
        "--time",
        "1-12",
        "--data",
        "/data",
        "--out",
        out,
        "--site",
        site,
    ]
    done = submit(*words, "--account", "other", "--sbatch=--nice", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert options(done.stdout) == [
        "--job-name=senet-imagenet/se_resnet50",
        "--nodes=4",
        "--ntasks-per-node=1",
        "--gpus-per-node=8",
        "--cpus-per-task=96",
        "--mem=128G",
        "--time=1-12",
        "--signal=B:USR1@300",
        f"--output={out}/slurm/job-%j.log",
        "--open-mode=append",
        "--partition=gpu",
        "--account=other",
        "--requeue",
        "--exclusive",
        '"--constraint=h100&ib"',
        "--nice",
    ]
    assert not out.exists()


def test_words_reach_the_training_as_they_were_typed(tmp_path: Path, site: Path) -> None:
    out, data = tmp_path / "it's $HOME", '/data/`id`; "x"\n#SBATCH --uid=0'
    words = [
        ROOT / "configs/imagenet/se_resnet50.yaml",
        "--gpus",
        8,
        "--time",
        600,
        "--data",
        data,
        "--out",
        out,
        "--site",
        site,
    ]
    done = submit(*words, "--dry-run", "data.mean=[0.5, 0.5, 0.5]", "--", "--largest-batch", 32)
    assert done.returncode == 0, done.stderr
    assert not [option for option in options(done.stdout) if "uid" in option]
    head, _, _ = done.stdout.partition("\nset -euo pipefail\n")
    told = subprocess.run(
        ["bash", "-c", head + '\nprintf "%s\\0" "$@"'], capture_output=True, text=True, check=True
    ).stdout
    assert told.split("\0")[:-1] == [
        str(ROOT / "configs/imagenet/se_resnet50.yaml"), str(out), "data.mean=[0.5, 0.5, 0.5]",
        "--data", data, "--largest-batch", "32",
    ]  # fmt: skip


def test_a_script_stands_alone(tmp_path: Path, site: Path) -> None:
    for kind in ([], ["--array"]):
        words = [
            "configs/ablations/ratio.yaml",
            "--gpus",
            8,
            "--time",
            600,
            "--data",
            "/data",
            "--out",
            tmp_path,
            "--site",
            site,
        ]
        done = submit(*words, *kind, "--dry-run")
        assert done.returncode == 0, done.stderr
        assert "source slurm/" not in done.stdout
        assert subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["optim.lrr=1"], "did you mean optim.lr?"),
        (["--nodes", "3"], "batch: 1024 does not divide over 24 ranks"),
        (["--time", "soon"], "--time soon: not a time"),
        (["--time", "10"], "--time 10: too short to end 300 s early"),
        (["--site", "/nonexistent"], "--site /nonexistent: no such file"),
        (["--procs", "2"], "--procs is for --gpus 0"),
        (["--cpus", "many"], "cpus=many: not a number of cores"),
        (["--mem", "16 GB"], "mem=16 GB: not a size"),
        (["--data", "imagenet"], f"--data imagenet: there is no {ROOT}/imagenet"),
        (["--", "--save-minuets", "5"], "unrecognized arguments: --save-minuets"),
        (["--", "--keep", "0"], "--keep: must be positive"),
    ],
)
def test_what_would_fail_after_the_queue_fails_at_once(site: Path, words: list[str], said: str) -> None:
    usual = [
        "configs/imagenet/se_resnet50.yaml",
        "--gpus",
        8,
        "--time",
        600,
        "--data",
        "/data",
        "--site",
        site,
        "--dry-run",
    ]
    done = submit(*usual, *words)
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr


def test_a_folder_of_another_run_is_refused(tmp_path: Path, site: Path) -> None:
    file, out = tmp_path / "tiny.yaml", tmp_path / "out"
    out.mkdir()
    for target in (file, out / "config.yaml"):
        target.write_text(yaml.safe_dump(TINY))
    words = [file, "--gpus", 0, "--time", 600, "--data", "/data", "--site", site, "--out", out, "--dry-run"]
    assert submit(*words).returncode == 0
    done = submit(*words, "epochs=3")
    assert (done.returncode, "another config (epochs: 2 -> 3)" in done.stderr) == (2, True)
    told = submit(*words, "epochs=3", "--", "--accept-changes", "--largest-batch", "auto")
    assert told.returncode == 0, told.stderr
    (out / "config.yaml").write_bytes(b"epochs: \xff")
    with pytest.raises(UsageError, match=r"config\.yaml: damaged; restore it"):
        check_folder(config.from_dict(TINY), out, accept=True)


def test_no_data_and_no_slurm_are_told(tmp_path: Path, site: Path) -> None:
    words = ["configs/imagenet/se_resnet50.yaml", "--gpus", 8, "--time", 600, "--site", site, "--out", tmp_path / "out"]
    assert "no data set: give --data DIR" in submit(*words).stderr
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/bash").symlink_to("/bin/bash")
    done = submit(*words, "--data", "/data", PATH=str(tmp_path / "bin"))
    assert (done.returncode, "no sbatch on this machine" in done.stderr, "--dry-run" in done.stderr) == (2, True, True)
    assert not (tmp_path / "out").exists()


def test_an_array_has_the_variants_that_are_left(tmp_path: Path, site: Path) -> None:
    file = tmp_path / "some.yaml"
    file.write_text(
        yaml.safe_dump(TINY | {"variants": {"a": {}, "b": {"epochs": 3}, "c": {"batch": 24}}}, sort_keys=False)
    )
    (tmp_path / "out/b").mkdir(parents=True)
    (tmp_path / "out/b/status.json").write_text(json.dumps({"state": "done", "step": 5, "epoch": 1, "epochs": 1}))
    words = [
        file,
        "--array",
        "--at-once",
        1,
        "--gpus",
        0,
        "--procs",
        2,
        "--time",
        600,
        "--data",
        "/data",
        "--out",
        tmp_path / "out",
    ]
    done = submit(*words, "--site", site, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "--array=0,2%1" in options(done.stdout)
    assert "export PROCS_PER_NODE=2\n" in done.stdout
    assert "batch: 12 does not divide over 8 ranks" in submit(*words, "--nodes", 4, "--site", site, "--dry-run").stderr
    words[0] = "configs/debug/overfit.yaml"
    assert "overfit.yaml has no variants" in submit(*words, "--site", site, "--dry-run").stderr


def test_the_site_file_is_read_and_its_own_form_kept(tmp_path: Path, site: Path) -> None:
    assert read_site(site) == Site("gpu", "my lab", "", "12", "16G", "", "", ("--exclusive", "--constraint=h100&ib"))
    assert read_site(ROOT / "slurm/site.sh") == Site(cpus="8", mem="16G")
    broken = tmp_path / "broken.sh"
    broken.write_text("partition=(")
    with pytest.raises(UsageError, match="bash cannot read it"):
        read_site(broken)


@pytest.mark.parametrize(
    ("time", "is_seconds"),
    [("90", 5400), ("5:30", 330), ("24:00:00", 86400), ("2-12", 216000), ("1-2:3", 93780), ("1-2:3:4", 93784)],
)
def test_times_are_those_of_sbatch(time: str, is_seconds: int) -> None:
    assert seconds(time) == is_seconds


def test_what_is_submitted_is_said(tmp_path: Path, site: Path) -> None:
    """By a stand-in for Slurm's commands: a job on GPUs that no test has."""
    for name, prints in (("sbatch", "echo 71"), ("squeue", "true")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{prints}\n")
        (tmp_path / name).chmod(0o755)
    out = tmp_path / "out"
    out.mkdir()
    (out / "status.json").write_text(json.dumps({"state": "stopped", "step": 5, "epoch": 50, "epochs": 100}))
    words = ["configs/imagenet/se_resnet50.yaml", "--nodes", 2, "--gpus", 8, "--time", 120, "--site", site]
    words += ["--out", out, "--data", "/nowhere", "--gpu"]
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = submit(*words, "h100", PATH=path)
    assert done.returncode == 0, done.stderr
    assert "warning: --data /nowhere: not on this machine; all nodes of the job need it there" in done.stderr
    said = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert said["job"] == "71: 2 x 8 GPUs, time limit 120"
    assert said["data"] == "/nowhere"
    starts = re.fullmatch(r"about (\d+): ([\d.]+) hours on h100 are left, by launch.plan", said["starts"])
    assert starts is not None, said["starts"]
    assert int(starts[1]) == math.ceil(float(starts[2]) / (2 - 420 / 3600))
    told = submit(*words, "h1", PATH=path)
    assert "  starts   not known: --gpu h1: " in told.stdout, told.stdout


def test_torch_is_not_waited_for() -> None:
    assert subprocess.run(
        [sys.executable, "-c", "import sys, launch.submit, launch.status; sys.exit('torch' in sys.modules)"],
        cwd=ROOT, check=False,
    ).returncode == 0  # fmt: skip
