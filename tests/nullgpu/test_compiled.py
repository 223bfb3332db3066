"""What is compiled for an H100, judged without one."""

from __future__ import annotations

import pytest

from tests.nullgpu.conftest import NullGpus


@pytest.mark.slow
def test_the_fused_tail_takes_few_passes_and_no_more_registers_than_there_are(nullgpus: NullGpus) -> None:
    """4 passes forward and 7 backward; beside maps of 7 x 7 pixels the weights of the SE block count too."""
    (found,) = nullgpus.told("tests.nullgpu.compiled")
    assert len(found) == 2
    for shape, facts in found.items():
        forward, backward = facts.pop("passes")
        more = 0.05 if "56 px" in shape else 1.2
        assert 4 <= forward <= 4 + more, (shape, forward)
        assert 7 <= backward <= 7 + more, (shape, backward)
        assert len(facts) == 4
        for kernel, (registers, spilled) in facts.items():
            assert registers <= 255, (shape, kernel)
            assert spilled == 0, (shape, kernel)
