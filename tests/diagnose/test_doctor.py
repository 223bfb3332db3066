"""launch.doctor says what is there, and finds what is wrong."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from torch import Tensor

from senet.diagnose import doctor
from senet.distributed import World
from tests.helpers import run, run_text


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
        "versions",
        "clocks",
        "all-reduce",
        "shared memory",
        "--out",
        "disk",
        "--data",
        "W&B",
    }
    assert {levels[what] for what in ("torch", "ranks", "versions", "clocks", "--out", "--data")} == {"ok"}
    assert "62 training and 203 validation images, the same on all ranks" in done.stdout
    assert not (tmp_path / "out").exists()


def test_what_is_wrong_fails_with_a_remedy(tiny: Path, tmp_path: Path) -> None:
    done = run("launch.doctor", tiny, "--data", tmp_path / "nowhere", "--out", "/proc/nowhere")
    assert done.returncode == 1
    assert "fail  --data               rank 0 on " in done.stdout
    assert "no such folder; expected DIR/train" in done.stdout
    assert "fail  --out" in done.stdout
    assert "name another folder" in done.stdout


def test_a_small_disk_is_found(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small tmpfs")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=80m", "none", disk], capture_output=True, check=False
    ).returncode:
        pytest.skip("cannot mount a tmpfs here")
    try:
        done = run("launch.doctor", "configs/imagenet/se_resnet50.yaml", "--data", tmp_path, "--out", disk / "run")
        left = list(disk.iterdir())
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
    assert (
        f"warn  disk                 {disk}: 80 MiB free, the checkpoints kept will take 8" in done.stdout
    )  # 4 x (107 + 107)
    assert "MiB; make room, lower --keep, or use another --out" in done.stdout
    assert not left


ODD_RANK = """
import os, sys, time
from pathlib import Path
odd = os.environ["RANK"] == "1"
if odd:
    true = time.time
    time.time = lambda: true() - 60
from senet import config
from senet import distributed
from senet.data.source import Source
from senet.models import build
from senet.run import preflight
from senet.system.run_folder import RunFolder
preflight.SHARED = Path(sys.argv[1]) if odd else preflight.SHARED
world = distributed.start("cpu")
run = RunFolder(Path(sys.argv[2]) / "run")
out = RunFolder(Path(sys.argv[2]) / "elsewhere") if odd else run
settings = config.load("configs/imagenet/se_resnet50.yaml")
net = build(settings.net, 1000)
source = Source(backend="pillow", workers=2)
found = preflight.warnings(world, settings, source, out, 10**6, 512, net)
began = time.monotonic()
calm = preflight.warnings(world, config.load("configs/debug/tiny.yaml"), source, run, 2, 16, net)
assert time.monotonic() - began < 5
if world.is_main:
    print("\\n".join(found))
    print(f"calm: {[line for line in calm if 'clock' not in line]}")
world.close()
"""


def test_the_odd_rank_is_named(tmp_path: Path) -> None:
    """Rank 1 has another clock, no shared memory, and another disk for its runs."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").touch()
    done = run_text(ODD_RANK, tmp_path, tmp_path / "none", tmp_path, ranks=2)
    assert done.returncode == 0, done.stderr
    clock, memory, seen, disk, calm = done.stdout.splitlines()
    assert clock.startswith("the clock of rank ")
    assert "60 s" in clock
    assert memory.startswith("rank 1 on ")
    assert ": 0 MiB of shared memory, PIL's workers may fill 1470 MiB and die" in memory
    assert seen.startswith("rank 1 on ")
    assert f"does not see {tmp_path}" in seen
    assert "MiB free, the checkpoints kept will take" in disk
    assert calm == "calm: []"


class Ring(World):
    """Rank 0 of a ring of GPUs that add float32 numbers one after another; `broken` is a place where one is lost."""

    broken: int | None = None

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        for other in range(1, self.size):
            tensor += other + 1.0 if tensor[-1] > 0 else 0.0
        if self.broken is not None:
            tensor[self.broken] -= 1
        return tensor


class BrokenRing(Ring):
    broken = 12_345


@pytest.mark.parametrize("size", [2, 88, 104, 120, 512, 4096])
def test_sums_are_judged_rightly_over_any_number_of_gpus(size: int) -> None:
    found = doctor.all_reduce(Ring(0, size, torch.device("cpu")), "no GPU", megabytes=1)
    assert "wrong sums" not in found.text
    found = doctor.all_reduce(BrokenRing(0, size, torch.device("cpu")), "no GPU", megabytes=1)
    assert (found.level, "gives wrong sums; check the network" in found.text) == ("fail", True)


OPEN = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build  "
    "(dvs-builder)\nGCC version: 12.2.0\n"
)
CLOSED = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 07:20:13 UTC 2025\nGCC version: 13.3.0\n"
)


@pytest.mark.parametrize(
    ("text", "usable", "level", "words"),
    [
        (
            OPEN,
            False,
            "fail",
            "570.86.15: torch is built for CUDA 13.0 and needs 580; DALI is built for CUDA 13.0 and needs 580: update",
        ),
        (OPEN, True, "warn", "570.86.15: torch"),
        (CLOSED, True, "ok", "580.65.06"),
        ("something else", True, "warn", "cannot be read"),
    ],
)
def test_old_drivers_are_found(text: str, usable: bool, level: str, words: str) -> None:
    found = doctor.driver(text, {"torch": "13.0", "DALI": "13.0"}, usable)
    assert found.level == level
    assert words in found.text
    assert doctor.driver(OPEN, {"torch": "12.8", "DALI": None}, True).level == "ok"


class Server(BaseHTTPRequestHandler):
    """Answers like W&B, as the key says."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        proof = base64.b64decode(self.headers["Authorization"].removeprefix("Basic ")).decode()
        key = proof.removeprefix("api:").rstrip("0")
        if key == "hangs":
            time.sleep(1.5)
            return
        answer = json.dumps({"data": {"viewer": {"username": "jie"} if key == "good" else None}}).encode()
        self.send_response({"revoked": 401, "broken": 500}.get(key, 200))
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("key", "level", "words"),
    [
        ("good", "ok", "on, as jie"),
        ("unknown", "warn", "refuses the key; wandb login --relogin"),
        ("revoked", "warn", "refuses the key"),
        ("broken", "warn", "answers with 500; runs are kept offline"),
        ("hangs", "warn", "cannot be reached"),
    ],
)
def test_the_login_is_tried(key: str, level: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("localhost", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(doctor, "PATIENCE", 0.5)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://localhost:{server.server_port}")
        monkeypatch.setenv("WANDB_API_KEY", f"{key:0<40}")  # shorter ones are none to wandb
        monkeypatch.delenv("WANDB_MODE", raising=False)
        found = doctor.wandb_login()
        assert (found.level, words in found.text) == (level, True), found
        monkeypatch.setenv("WANDB_MODE", "offline")
        assert doctor.wandb_login().level == "ok"
        server.shutdown()
