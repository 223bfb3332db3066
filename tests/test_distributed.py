"""How the processes of a run find each other, and over which network."""

from __future__ import annotations

import pytest

from senet.distributed import gloo_interface


@pytest.mark.parametrize(
    ("nccl", "gloo"),
    [
        ("", ""),
        ("=eth1", "eth1"),
        ("=eth", ""),
        ("eth", "eth0"),
        ("ib,eth", "ib0"),
        ("en,eth1", "eth1"),
        ("^docker0,lo", ""),
    ],
)
def test_gloo_takes_the_network_that_nccl_is_given(nccl: str, gloo: str) -> None:
    assert gloo_interface(nccl, ["lo", "docker0", "eth0", "eth1", "ib0", "ib1"]) == gloo
