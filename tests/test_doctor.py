"""launch.doctor says what is there, and finds what is wrong."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import run


def test_two_ranks_are_examined_with_their_data(tiny: Path, images: Path, tmp_path: Path) -> None:
    done = run("launch.doctor", tiny, "--data", images, "--out", tmp_path / "out", ranks=2)
    assert done.returncode == 0, done.stdout + done.stderr
    levels = {line[6:27].strip(): line[:5].strip() for line in done.stdout.splitlines()}
    assert levels.keys() >= {
        "Python",
        "torch",
        "nvidia-dali-cuda130",
        "GPU",
        "ranks",
        "clocks",
        "all-reduce",
        "shared memory",
        "--out",
        "--data",
        "W&B",
    }
    assert {levels[what] for what in ("torch", "ranks", "all-reduce", "--data")} == {"ok"}
    assert "62 training and 203 validation images, the same on all ranks" in done.stdout
    assert not (tmp_path / "out").exists()


def test_what_is_wrong_fails_with_a_remedy(tiny: Path, tmp_path: Path) -> None:
    done = run("launch.doctor", tiny, "--data", tmp_path / "nowhere", "--out", "/proc/nowhere")
    assert done.returncode == 1
    assert "fail  --data               rank 0 on " in done.stdout
    assert "no such folder; expected DIR/train" in done.stdout
    assert "fail  --out" in done.stdout
    assert "name another folder" in done.stdout
