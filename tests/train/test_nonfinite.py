"""Gradients that are not finite leave no trace in weights and momentum, whatever the optimiser."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from timm.optim import Lars
from torch import nn

from senet.config import Optim
from senet.data.loader import Batch
from senet.errors import UsageError
from senet.execution.execution import Execution
from senet.train import optimiser as optimisers
from senet.train.meter import Meter
from senet.train.nonfinite import NonFiniteGuard
from senet.train.trainer import Trainer
from tests.helpers import assert_same, not_finite
from tests.train.test_step import CONFIG, CPU, trainer_of


def test_a_fused_step_is_left_out_without_waiting_for_the_device() -> None:
    net = nn.Linear(3, 2)
    optimiser = optimisers.build(net, Optim(lr=0.1))
    before = deepcopy(dict(net.state_dict()))
    net(torch.full((1, 3), float("nan"))).sum().backward()
    optimiser.found_inf = torch.ones(())  # type: ignore[attr-defined]
    optimiser.step()
    assert_same(before, dict(net.state_dict()))
    assert not_finite(optimiser.state_dict()) == []


def test_an_optimiser_that_would_let_nan_through_is_refused() -> None:
    """timm's LARS takes no notice of found_inf: its weights would turn NaN in a step that is reported as left out."""
    net = nn.Linear(3, 2)
    lars = Lars(net.parameters(), lr=0.1)
    for optimiser in (lars, torch.optim.SGD(net.parameters(), lr=0.1), torch.optim.AdamW(net.parameters())):
        with pytest.raises(UsageError, match=f"optim: {type(optimiser).__name__} cannot leave out a step"):
            NonFiniteGuard(optimiser)
    lars.found_inf = torch.ones(())  # type: ignore[attr-defined]
    net(torch.full((1, 3), float("nan"))).sum().backward()
    lars.step()
    assert any(p.isnan().any() for p in net.parameters())  # there is a reason to refuse it


def test_another_fused_optimiser_is_held_to_the_same() -> None:
    trainer = trainer_of(CONFIG)
    other = Trainer(
        CONFIG, trainer.world, trainer.net, torch.optim.AdamW(trainer.net.parameters(), fused=True), Execution()
    )
    meter, images, labels = Meter(CPU), torch.randn(12, 3, 32, 32), torch.arange(12) % 10
    assert other.step([Batch(images, labels)], meter)
    before = deepcopy(other.optimiser.state_dict()["state"]), deepcopy(dict(other.net.named_parameters()))
    images[3] = float("nan")
    assert not other.step([Batch(images, labels)], meter)
    assert_same(before, (deepcopy(other.optimiser.state_dict()["state"]), deepcopy(dict(other.net.named_parameters()))))
