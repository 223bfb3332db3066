"""A part of the GPU bench: CIFAR-10 trained by the real program, stopped by file when time is over, gone on with in the
next call.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from senet.bench.parts import Place

CONFIG = "configs/cifar10/se_resnet20.yaml"
STOPPED = 75


def train_cifar(place: Place) -> dict[str, Any]:
    """Errors after each epoch, images/s and seconds; `unfinished` says how far it is where it was stopped."""
    out = place.out / "cifar"
    command = [
        sys.executable,
        "-m",
        "launch.train",
        CONFIG,
        "--out",
        str(out),
        "--device",
        place.device.type,
        "--track",
        "none",
    ]
    if place.data:
        command += ["--data", str(place.data)]
    else:
        command += [
            "data.set=synthetic",
            "data.classes=10",
            "data.crop=32",
            "data.train_images=50000",
            "data.val_images=10000",
        ]
    if place.tiny:
        command = [word for word in command if "images=" not in word]
        command += ["epochs=1", *([] if place.data else ["batch=16", "data.train_images=64", "data.val_images=32"])]
    command += ["precision=bf16"] if place.device.type == "cuda" else []
    (out / "stop").unlink(missing_ok=True)
    process = subprocess.Popen(command, stdout=sys.stderr, stderr=sys.stderr)
    try:
        while process.poll() is None:
            if time.monotonic() > place.deadline and out.is_dir():
                (out / "stop").touch()
            time.sleep(0.2)
    finally:
        if process.poll() is None:
            process.terminate()
    if process.returncode not in (0, STOPPED):
        raise SystemExit(f"launch.train: exit code {process.returncode}")
    found = _log(out)
    return found | {
        "data": "CIFAR-10" if place.data else "synthetic",
        "config": CONFIG,
        "unfinished": None if process.returncode == 0 else f"stopped after {len(found['epochs'])} epochs",
    }


def _log(out: Path) -> dict[str, Any]:
    epochs, speeds = [], []
    for line in (out / "log.jsonl").read_text().splitlines():
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if record.get("kind") == "val":
                epochs.append(
                    {name: record.get(name) for name in ("epoch", "train_top1_error", "top1_error", "loss", "seconds")}
                )
            elif record.get("kind") == "train":
                speeds.append(record["images_per_second"])
    return {
        "epochs": epochs,
        "images_per_second": sorted(speeds)[len(speeds) // 2] if speeds else None,
        "folder": str(Path(out).name),
    }
