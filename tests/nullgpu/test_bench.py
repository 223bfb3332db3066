"""The GPU bench takes its way through CUDA: a numbered device, CUDA graphs, memory, and a loop that is compiled."""

from __future__ import annotations

from pathlib import Path

import pytest

from senet.bench.rows import read
from tests.nullgpu.conftest import NullGpus


@pytest.mark.slow
def test_parts_run_on_a_gpu(nullgpus: NullGpus, tmp_path: Path) -> None:
    parts = ["machine", "net-cifar", "loader"]
    done = nullgpus.run("launch.bench", "gpu", "--tiny", "--out", tmp_path, "--minutes", 4, "--parts", *parts)
    assert done.returncode == 0, done.stderr
    rows = {(row.part, row.what, row.how): row for row in read(tmp_path / "rows.jsonl")}
    net = "cifar10/se_resnet20"
    assert {how for part, what, how in rows if part == "net-cifar"} == {"channels_last", "channels_last+graph"}
    for how in ("channels_last", "channels_last+graph"):
        row = rows["net-cifar", net, how]
        assert row.value is not None, row.failure
        assert row.facts["precision"] == "bf16"
        assert row.number("GiB") is not None
    assert rows["loader", "pillow", "net fed by it"].value is not None
    dali = [row for row in rows.values() if row.what == "dali"]
    # There is no nvJPEG on a null GPU: DALI that decoded on the CPU would not mind.
    assert all(row.failure and "CUDA" in row.failure for row in dali)
