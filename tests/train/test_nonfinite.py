"""Gradients that are not finite leave no trace in weights and momentum."""

from __future__ import annotations

import torch
from torch import nn

from senet.config import Optim
from senet.run.saver import snapshot
from senet.train import optimiser as optimisers
from tests.helpers import assert_same, not_finite


def test_a_fused_step_is_left_out_without_a_look_at_the_device() -> None:
    net = nn.Linear(3, 2)
    optimiser = optimisers.build(net, Optim(lr=0.1))
    before = snapshot(net.state_dict())
    net(torch.full((1, 3), float("nan"))).sum().backward()
    optimiser.found_inf = torch.ones(())  # type: ignore[attr-defined]
    optimiser.step()
    assert_same(before, dict(net.state_dict()))
    assert not_finite(optimiser.state_dict()) == []
