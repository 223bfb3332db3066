"""Trainings as jobs of a real Slurm: what it does to them, they survive."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from senet.run.status import best, newest_step, read
from tests.helpers import TINY, assert_same, final, records, until
from tests.slurm.conftest import Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
EPOCHS = 16  # of five steps
OFTEN = ["--workers", 1, "--log-every", 5, "--save-minutes", 0.00001]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("config") / "tiny.yaml"
    file.write_text(yaml.safe_dump(TINY | {"epochs": EPOCHS}))
    return file


@pytest.fixture(autouse=True)
def none_left(cluster: Cluster) -> Iterator[None]:
    yield
    cluster.clear()


def submitted(cluster: Cluster, out: Path, *words: object, **more: str) -> str:
    """The number of the job."""
    done = cluster.submit(*words, "--out", out, "--", *OFTEN, **more)
    assert done.returncode == 0, done.stderr
    job = (out / "slurm/job").read_text().strip()
    assert done.stdout.startswith(f"job {job}: ")
    return job


def log(out: Path) -> str:
    return "".join(file.read_text() for file in (out / "slurm").glob("job-*.log"))


def reach(out: Path, step: int) -> int:
    until(lambda: newest_step(out) >= step, f"step {step} in {out}")
    return newest_step(out)


def state(out: Path) -> str:
    status = read(out)
    return status.state if status else "nothing"


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory, tiny: Path, images: Path) -> Path:
    """A two-node job that nothing happens to, in a folder with a name that must be quoted everywhere."""
    out = tmp_path_factory.mktemp("whole") / "it's 100%j"
    job = submitted(cluster, out, tiny, "--nodes", 2, "--data", images)
    ended = cluster.wait_for_end(job)
    assert ended["JobState"] == "COMPLETED", log(out)
    return out


def test_a_job_on_two_nodes_trains_to_the_end(cluster: Cluster, undisturbed: Path, tiny: Path, images: Path) -> None:
    told = log(undisturbed)
    assert "batch 12 = 2 x cpu x 6" in told
    assert "pixels: dali-cpu" in told
    assert f"slurm: done: epoch {EPOCHS} of {EPOCHS}" in told
    assert final(undisturbed)["progress"]["epoch"] == EPOCHS
    errors = undisturbed / "errors.log"
    where = ["--nodes=2", "--exclusive", f"--output={str(errors).replace('%', '%%')}"]
    job = cluster.call(
        "sbatch", "--parsable", *where, "slurm/evaluate.sbatch", undisturbed, "--data", images, "--workers", 1, "--json"
    )
    assert cluster.wait_for_end(job)["JobState"] == "COMPLETED", errors.read_text()
    (found,) = (json.loads(line) for line in errors.read_text().splitlines() if line.startswith("{"))
    assert found["images"] == 203
    assert found["top1_error"] == best(undisturbed)
    again = cluster.submit(tiny, "--nodes", 2, "--data", images, "--out", undisturbed)
    assert (again.returncode, "finished; nothing to submit" in again.stdout) == (0, True)


def test_time_limit_preemption_and_a_lost_node_change_nothing(
    cluster: Cluster, undisturbed: Path, tmp_path: Path, tiny: Path, images: Path
) -> None:
    out = tmp_path / "out"
    job = submitted(cluster, out, tiny, "--nodes", 2, "--data", images, WANDB_MODE="offline")
    reach(out, 5)
    twice = cluster.submit(tiny, "--nodes", 2, "--data", images, "--out", out)
    assert (twice.returncode, f"job {job} (RUNNING) is at work in it" in twice.stderr) == (2, True)

    with cluster.frozen(job):
        cluster.control(
            "update", f"jobid={job}", "timelimit=1"
        )  # so its signal is due; the controller looks every half minute
        until(lambda: "slurm: got USR1" in log(out), "the signal came", 60)
    cluster.wait(job, "PENDING")
    assert state(out) == "stopped"
    limit = newest_step(out)
    assert f"slurm: time is nearly up: requeued at step {limit}" in log(out)
    assert not (out / "stop").exists()
    cluster.control("update", f"jobid={job}", "timelimit=10")
    cluster.hasten(job)

    reach(out, limit + 5)
    with cluster.frozen(job):
        urgent = cluster.call(
            "sbatch",
            "--parsable",
            "--partition=urgent",
            "--nodes=2",
            "--exclusive",
            "--output=/dev/null",
            "--wrap=true",
        )
        until(lambda: cluster.facts(job)["PreemptTime"] != "None", "the job is to make way")
    cluster.wait(job, "PENDING")
    preempted = newest_step(out)
    assert f"slurm: preempted: requeued at step {preempted}" in log(out)
    assert cluster.wait_for_end(urgent)["JobState"] == "COMPLETED"
    cluster.hasten(job)

    reach(out, preempted + 5)
    cluster.lose_node("n2")
    cluster.wait(job, "PENDING")
    assert state(out) != "done"
    cluster.bring_back("n2")
    cluster.hasten(job)

    ended = cluster.wait_for_end(job)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "3"), log(out)
    assert log(out).count("resumed ") == 3
    assert_same(final(undisturbed), final(out))
    assert records(undisturbed) == records(out)
    runs = [folder.name.split("-")[3] for folder in (out / "wandb").glob("offline-run-*")]
    assert len(runs) > 1  # a start can be too short for W&B's
    assert set(runs) == {(out / "wandb_id").read_text()}


def test_a_cancelled_job_saves_and_goes_on_when_submitted_again(
    cluster: Cluster, tmp_path: Path, tiny: Path, images: Path
) -> None:
    out = tmp_path / "out"
    words: list[Any] = [tiny, "epochs=1000", "--nodes", 2, "--data", images]
    job = submitted(cluster, out, *words)
    reach(out, 5)
    with cluster.frozen(job):
        cluster.call("scancel", job)
    cluster.wait(job, "CANCELLED")
    until(lambda: not cluster.call("squeue", "--noheader"), "the nodes are free")
    assert state(out) == "stopped"
    stopped = newest_step(out)
    assert stopped > 5

    job = submitted(cluster, out, *words)
    reach(out, stopped + 1)
    cluster.call("scancel", "--signal=TERM", "--batch", job)
    ended = cluster.wait_for_end(job)
    assert (ended["ExitCode"], ended["Restarts"], state(out)) == ("75:0", "0", "stopped")
    assert f"slurm: ended by TERM at step {newest_step(out)}" in log(out)
    assert log(out).count("resumed ") == 1


def test_an_array_trains_the_variants_that_are_left(cluster: Cluster, tmp_path: Path, images: Path) -> None:
    """Slurm counts GPUs that are not there, and so are the ranks."""
    file, out = tmp_path / "ratio.yaml", tmp_path / "out"
    variants = {"two": {"net": {"se": {"ratio": 2}}}, "four": {}, "none": {"net": {"se": None}}}
    file.write_text(yaml.safe_dump(TINY | {"epochs": 1, "variants": variants}, sort_keys=False))
    (out / "four").mkdir(parents=True)
    (out / "four/status.json").write_text(json.dumps({"state": "done", "step": 5, "epoch": 1, "epochs": 1}))
    job = submitted(cluster, out, file, "--array", "--at-once", 2, "--gpus", 2, "--data", images)
    for index in (0, 2):
        ended = cluster.wait_for_end(f"{job}_{index}")
        assert ended["JobState"] == "COMPLETED", log(out)
    ratios = {name: yaml.safe_load((out / name / "config.yaml").read_text())["net"]["se"] for name in ("two", "none")}
    assert (ratios["two"]["ratio"], ratios["none"]) == (2, None)
    assert not (out / "four/config.yaml").exists()
    assert log(out).count("batch 12 = 2 x cpu x 6") == 2
    again = cluster.submit(file, "--array", "--data", images, "--out", out)
    assert (again.returncode, "finished; nothing to submit" in again.stdout) == (0, True)


def test_a_run_that_is_refused_is_not_started_again(cluster: Cluster, tmp_path: Path, tiny: Path) -> None:
    out, empty = tmp_path / "out", tmp_path / "empty"
    empty.mkdir()
    job = submitted(cluster, out, tiny, "--data", empty)
    ended = cluster.wait_for_end(job)
    assert (ended["JobState"], ended["Restarts"]) == ("FAILED", "0"), log(out)
    assert "slurm: ended before its first step, see above; not started again" in log(out)


def test_a_run_that_gets_no_further_ends_after_three_starts(
    cluster: Cluster, tmp_path: Path, tiny: Path, images: Path
) -> None:
    """A rank dies in each start as it writes the checkpoint of the same step, when those before it are on disk."""
    out = tmp_path / "out"
    job = submitted(cluster, out, tiny, "--data", images, SENET_FAULTS="kill@0:3/write")
    for restarts in (1, 2):
        until(lambda: int(cluster.facts(job)["Restarts"]) == restarts, f"restart {restarts}")  # noqa: B023
        cluster.hasten(job)
    ended = cluster.wait_for_end(job)
    assert (ended["JobState"], ended["Restarts"]) == ("FAILED", "2"), log(out)
    assert log(out).count(": starts again") == 1
    assert newest_step(out) == 2
    assert "slurm: error: no step further than 2 in 3 starts" in log(out)


def test_what_the_site_sets_reaches_nodes_that_inherit_nothing(
    cluster: Cluster, tmp_path: Path, tiny: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By --export=NONE, many clusters' advice, srun would hand its tasks nothing, not even a PATH."""
    file, out = tmp_path / "site.sh", tmp_path / "out"
    file.write_text(cluster.site.read_text().replace("{ export", "{ export WANDB_MODE=offline"))
    monkeypatch.setattr(cluster, "site", file)
    words = [tiny, "epochs=1", "--nodes", 2, "--cpus", 2, "--mem", "500M", "--data", images]
    job = submitted(cluster, out, *words, "--sbatch=--export=NONE", SBATCH_EXPORT="NONE", SENET_FAULTS="kill@0:1")
    ended = cluster.wait_for_end(job)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "0"), log(out)
    assert (ended["NumCPUs"], ended["MinMemoryNode"]) == ("4", "500M")
    assert list((out / "wandb").glob("offline-run-*"))
