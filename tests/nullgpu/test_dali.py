"""DALI beside a GPU on which it cannot start: to DALI, which has a runtime of its own, a null GPU has an old driver."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.nullgpu.conftest import NullGpus


@pytest.mark.slow
def test_dali_that_cannot_start_on_the_gpu_says_so_and_decodes_on_the_cpu(
    nullgpus: NullGpus, tiny: Path, images: Path, tmp_path: Path
) -> None:
    words = [tiny, "epochs=1", "--data", images, "--workers", 1, "--device", "cuda", "--track", "none", "--out"]
    refused = nullgpus.run("launch.train", *words, tmp_path / "refused")
    assert refused.returncode == 2
    assert "error: DALI cannot start on cuda:0: " in refused.stderr
    assert "use --decode cpu" in refused.stderr
    assert "Traceback" not in refused.stderr
    done = nullgpus.run("launch.train", *words, tmp_path / "out", "--decode", "cpu")
    assert done.returncode == 0, done.stderr
    assert "dali-cpu" in done.stderr
