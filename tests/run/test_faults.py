"""What must not end a run, or spoil it: gradients that are not finite, a full disk, a stop at a bad moment."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from senet.config import Optim
from senet.run import checkpoint
from senet.run.saver import Saver, snapshot
from senet.train.optimiser import build as build_optimiser
from tests.helpers import ROOT, TINY, assert_same, command, environment, final, lines, not_finite, records, run

OFTEN = ["--log-every", 2, "--workers", 1, "--save-minutes", 0.00001]


@pytest.mark.parametrize("step", [0, 3])
def test_a_step_with_a_nan_is_left_out_on_all_ranks_and_named(
    tmp_path: Path, tiny: Path, images: Path, step: int
) -> None:
    """On one rank of two; also in the very first step, when there is no momentum yet."""
    out = tmp_path / "out"
    arguments = [tiny, "--data", images, "--log-every", 2, "--workers", 1, "--out"]
    done = run("launch.train", *arguments, out, ranks=2, SENET_FAULTS=f"nan@1:{step}")
    assert done.returncode == 0, done.stderr
    assert f"left out 1 steps from step {step + 1}: gradients not finite" in done.stderr
    payload = final(out)
    assert not_finite(payload["net"]) == []
    assert not_finite(payload["optimiser"]) == []
    assert not_finite(payload["statistics"]) == []
    (event,) = lines(out, kind="event")
    assert (event["skipped"], event["first_skipped"]) == (1, step + 1)
    dumped = [json.loads((out / f"nonfinite-{step + 1:08d}-rank{rank}.json").read_text()) for rank in (0, 1)]
    named = {name for part in dumped for name in part["images"][str(step + 1)]}
    assert len(named) == 12
    assert all(Path(name).exists() for name in named)
    healthy = lines(out, kind="val")
    assert all(record["loss"] is not None for record in healthy)


def test_too_many_in_a_row_go_back_and_leave_the_stretch_out(tmp_path: Path, tiny: Path, images: Path) -> None:
    out = tmp_path / "out"
    faults = " ".join(f"nan@0:{step}" for step in (6, 7))
    arguments = [tiny, "--data", images, "--log-every", 1, "--workers", 1, "--max-skips", 2, "--out", out]
    done = run("launch.train", *arguments, ranks=2, SENET_FAULTS=faults)
    assert done.returncode == 0, done.stderr
    assert "went back to epoch 1, step 0; leaves out steps 7 to 8" in done.stderr
    payload = final(out)
    assert not_finite(payload["net"]) == []
    assert payload["skipped"] == [[6, 7]]
    assert (payload["progress"]["epoch"], payload["progress"]["images"]) == (2, 120)
    assert lines(out, kind="val")[-1]["images"] == 203


def test_a_fused_step_is_left_out_without_a_look_at_the_device() -> None:
    net = nn.Linear(3, 2)
    optimiser = build_optimiser(net, Optim(lr=0.1))
    before = snapshot(net.state_dict())
    net(torch.full((1, 3), float("nan"))).sum().backward()
    optimiser.found_inf = torch.ones(())  # type: ignore[attr-defined]
    optimiser.step()
    assert_same(before, dict(net.state_dict()))
    assert not_finite(optimiser.state_dict()) == []


# ----------------------------------------------------------------------------------------------------------------- stop


def stopped(arguments: list[object], out: Path, when: str) -> subprocess.CompletedProcess[str]:
    """A run whose stop file appears when `when` is in what it prints."""
    with subprocess.Popen(
        command("launch.train", *arguments), cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        seen = ""
        for line in process.stderr:
            seen += line
            if when in line:
                (out / "stop").write_text("")
                break
        seen += process.stderr.read()
    return subprocess.CompletedProcess(process.args, process.returncode, "", seen)


def test_a_stop_file_saves_and_exits_with_75_and_goes_on(tmp_path: Path, tiny: Path, images: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    arguments: list[object] = [tiny, "epochs=25", "--data", images, "--log-every", 2, "--workers", 1]
    assert run("launch.train", *arguments, "--out", whole).returncode == 0
    done = stopped([*arguments, "--out", out], out, "epoch 2")
    assert done.returncode == 75, done.stderr
    assert not (out / "stop").exists()
    assert run("launch.train", *arguments, "--out", out).returncode == 0
    assert_same(final(whole), final(out))
    assert records(whole) == records(out)


def test_a_stop_within_the_validation_does_not_wait_for_its_end(tmp_path: Path, tiny: Path, images: Path) -> None:
    """One image at a time makes it take long. The epoch is not trained again: it goes on with its validation."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    arguments: list[object] = [tiny, "epochs=1", "--data", images, "--val-batch", 1, "--log-every", 5, "--workers", 1]
    assert run("launch.train", *arguments, "--out", whole).returncode == 0
    with subprocess.Popen(command("launch.train", *arguments, "--out", out), cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True) as process:  # fmt: skip # noqa: E501
        while not (out / "log.jsonl").exists() or not lines(out, kind="train", step=5):
            assert process.poll() is None
            time.sleep(0.01)
        process.terminate()
        _, told = process.communicate()
    assert process.returncode == 75, told
    assert not lines(out, kind="val")
    progress = final(out)["progress"]
    assert (progress["epoch"], progress["step"]) == (0, 5)
    assert run("launch.train", *arguments, "--out", out).returncode == 0
    assert_same(final(whole), final(out))
    assert records(whole) == records(out)


# ---------------------------------------------------------------------------------------------------------- checkpoints


def test_a_snapshot_is_not_reached_by_what_comes_after(tmp_path: Path) -> None:
    saver = Saver(tmp_path, keep=10)
    weights = torch.zeros(1000, 1000)
    for step in range(5):
        weights.fill_(step)
        saver.save(step, {"net": {"w": weights}, "list": [weights, 1, "x"]}, {}, ["best.pt"] if step == 2 else [])
    weights.fill_(-1)
    saver.close()
    assert not saver.news()
    for step in range(5):
        payload = checkpoint.read(tmp_path / f"step-{step:08d}.pt")
        assert payload["net"]["w"].unique().tolist() == [step]
        assert payload["list"][1:] == [1, "x"]
    assert checkpoint.read(tmp_path / "best.pt")["net"]["w"][0, 0] == 2


def test_what_is_kept(tmp_path: Path, tiny: Path, images: Path) -> None:
    """The newest, the best, those of every n-th epoch, and one an hour; each whole."""
    out = tmp_path / "out"
    arguments = [tiny, "epochs=3", "--data", images, "--out", out, "--backend", "pillow", "--save-minutes", 0.00001]
    done = run("launch.train", *arguments, "--keep", 1, "--keep-every", 2, "--keep-hours", 1)
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (out / "checkpoints").glob("*.pt")}
    assert names == {"step-00000015.pt", "best.pt", "epoch-0002.pt", "timed-00000000.pt"}
    payloads = {name: checkpoint.read(out / "checkpoints" / name) for name in names}
    assert payloads["epoch-0002.pt"]["progress"]["epoch"] == 2
    assert payloads["best.pt"]["progress"]["epoch"] == payloads["step-00000015.pt"]["progress"]["best"]["epoch"]
    for file in (out / "checkpoints").glob("timed-*.pt"):
        os.utime(file, (0, 0))
    again = run("launch.train", *arguments, "epochs=4", "--accept-changes", "--keep", 1, "--keep-hours", 1)
    assert again.returncode == 0, again.stderr
    assert len(list((out / "checkpoints").glob("timed-*.pt"))) == 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """24 MiB."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small tmpfs")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "none", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_costs_the_checkpoint_and_not_the_run(small_disk: Path, tiny: Path, images: Path) -> None:
    (small_disk / "filler").write_bytes(b"x" * (6 << 20))
    out = small_disk / "out"
    process = subprocess.Popen(
        command("launch.train", tiny, "epochs=8", "--data", images, "--out", out, "--log-every", 1, "--workers", 1),
        cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not (out / "checkpoints/step-00000005.pt.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    (small_disk / "more").write_bytes(b"x" * (5 << 20))
    _, told = process.communicate()
    assert process.returncode == 0, told
    assert "NOT written" in told
    assert "MiB free" in told
    assert "training goes on" in told
    newest = sorted((out / "checkpoints").glob("step-*.pt"))[-1]
    assert checkpoint.read(newest)["progress"]["epoch"] < 8
    (small_disk / "more").unlink()
    again = run("launch.train", tiny, "epochs=8", "--data", images, "--out", out)
    assert again.returncode == 0, again.stderr
    assert "resumed" in again.stderr
    assert final(out)["progress"]["epoch"] == 8


# ------------------------------------------------------------------------------------------------------------- restarts


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """What two ranks come to that nothing happens to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    done = run("launch.train", folder / "tiny.yaml", "--data", images, *OFTEN, "--out", folder / "out", ranks=2)
    assert done.returncode == 0, done.stderr
    return folder / "out"


@pytest.mark.slow
def test_a_rank_that_hangs_is_named_and_the_run_goes_on(
    tmp_path: Path, tiny: Path, images: Path, undisturbed: Path
) -> None:
    out = tmp_path / "out"
    arguments = [tiny, "--data", images, *OFTEN, "--hang-minutes", 0.2, "--out", out]
    done = run("launch.train", *arguments, ranks=2, restarts=2, SENET_FAULTS="hang@1:4")
    assert done.returncode == 0, done.stderr
    assert "is behind: in phase 'data' after 4 steps" in done.stderr
    assert "rank 1 on" in done.stderr.partition(" is behind")[0].rpartition(";")[2]
    assert "in _stretch" in done.stderr  # the stack
    assert_same(final(undisturbed), final(out))


def two_agents(
    words: list[str], folders: tuple[Path, Path], faults: str = "", restarts: int = 0
) -> tuple[list[int], str]:
    """Two nodes as torchrun sees them, each with its agent in a folder of its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    agent = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d"]
    agent += [
        f"--max-restarts={restarts}",
        f"--rdzv-endpoint=localhost:{port}",
        "--rdzv-id=test",
        "--local-addr=localhost",
        "-m",
        "launch.train",
    ]
    settings = environment(SENET_FAULTS=faults, PYTHONPATH=str(ROOT))
    agents = [
        subprocess.Popen([*agent, *words], cwd=cwd, env=settings, stderr=subprocess.PIPE, text=True) for cwd in folders
    ]
    told = "".join(process.communicate(timeout=200)[1] for process in agents)
    return [process.returncode for process in agents], told


@pytest.mark.slow
def test_two_agents_bring_a_killed_rank_back(tmp_path: Path, tiny: Path, images: Path, undisturbed: Path) -> None:
    out = tmp_path / "out"
    codes, told = two_agents(
        [*map(str, [tiny, "--data", images, *OFTEN, "--out", out])], (tmp_path, tmp_path), "kill@1:6", restarts=3
    )
    assert codes == [0, 0], told
    assert told.count("resumed") == 1
    assert_same(final(undisturbed), final(out))
    assert records(undisturbed) == records(out)


@pytest.mark.slow
def test_a_node_with_other_images_is_named(tmp_path: Path, tiny: Path, images: Path) -> None:
    for node in ("a", "b"):
        shutil.copytree(images, tmp_path / node / "data")
    (tmp_path / "b/data/train/class0/000.JPEG").unlink()
    codes, told = two_agents(
        [str(tiny), "--data", "data", "--out", str(tmp_path / "out")], (tmp_path / "a", tmp_path / "b")
    )
    assert 0 not in codes
    assert "has other images than rank 0 on" in told
    assert not (tmp_path / "out/checkpoints").exists()
