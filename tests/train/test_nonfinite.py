"""Gradients that are not finite leave no trace in weights, statistics and optimisers' states."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from senet.config import SGD, from_dict, to_dict
from senet.data.loader import Batch
from senet.errors import UsageError
from senet.train import optimiser as optimisers
from senet.train.meter import Meter
from senet.train.trainer import Trainer
from tests.helpers import assert_same, not_finite
from tests.train.test_step import CONFIG, CPU, trainer_of

OTHERS: list[dict[str, Any]] = [
    {"name": "lars", "lr": 0.1},
    {"name": "lamb", "max_grad_norm": 0.5},
    {"name": "adamw"},
    {"name": "adam", "betas": [0.8, 0.9]},
    {"timm": "lion", "lr": 1e-4, "arguments": {"betas": [0.9, 0.95]}},
    {"timm": "nadamw", "lr": 1e-3},
]


def test_a_fused_step_is_left_out_without_waiting_for_the_device() -> None:
    net = nn.Linear(3, 2)
    optimiser = optimisers.build(net, SGD(lr=0.1))
    before = deepcopy(dict(net.state_dict()))
    net(torch.full((1, 3), float("nan"))).sum().backward()
    optimiser.found_inf = torch.ones(())  # type: ignore[attr-defined]
    optimiser.step()
    assert_same(before, dict(net.state_dict()))
    assert not_finite(optimiser.state_dict()) == []


def of(trainer: Trainer) -> dict[str, Any]:
    net = {name: part for name, part in trainer.net.state_dict().items() if "num_batches" not in name}
    return deepcopy({"net": net, "optimiser": trainer.optimiser.state_dict()})


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("optim", OTHERS, ids=lambda optim: optim.get("name", optim.get("timm")))
def test_whatever_the_optimiser_a_step_is_made_or_leaves_no_trace(optim: dict[str, Any], precision: str) -> None:
    """Also the first step, and the step after is the one that would have been made without it."""
    config = replace(from_dict({**to_dict(CONFIG), "optim": optim}), precision=precision)  # type: ignore[arg-type]
    trainer, undisturbed, meter = trainer_of(config), trainer_of(config), Meter(CPU)
    labels = torch.arange(12) % 10
    good = [Batch(torch.randn(12, 3, 32, 32), labels) for _ in range(2)]
    bad = Batch(good[0].images.index_fill(0, torch.tensor([3]), float("nan")), labels)
    before = of(trainer)
    assert not trainer.step([bad], meter)
    assert_same(before["net"], of(trainer)["net"])
    for batch in good:
        if precision == "fp16":
            undisturbed.scaler.load_state_dict(trainer.scaler.state_dict())
        for each in (trainer, undisturbed):
            torch.manual_seed(0)  # of dropout
            assert each.step([batch], meter)
        made = of(trainer)
        assert not trainer.step([bad], meter)
        assert_same(made, of(trainer))
    assert_same(of(trainer), of(undisturbed))
    assert not torch.equal(before["net"]["fc.weight"], made["net"]["fc.weight"])


@pytest.mark.parametrize(
    ("optim", "message"),
    [
        ({"timm": "lian"}, "optim.timm: timm has no optimiser 'lian'; did you mean 'lion'?"),
        ({"timm": "lion", "arguments": {"beta": 1}}, "optim.arguments.beta: lion has no such argument; did you mean "),
        ({"timm": "lion", "arguments": {"lr": 1}}, "optim.arguments.lr: lion has no such argument"),
        ({"timm": "lion", "arguments": {"betas": [3, 4]}}, "optim: lion cannot be made: "),
        ({"timm": "adahessian"}, "optim: adahessian cannot be made: it needs second derivatives"),
        ({"timm": "bnblion"}, "optim: bnblion cannot be made: "),
    ],
)
def test_an_optimiser_that_cannot_be_made_is_refused_in_one_line(optim: dict[str, Any], message: str) -> None:
    settings = from_dict({"optim": optim}).optim
    with pytest.raises(UsageError) as error:
        optimisers.build(nn.Linear(3, 2), settings)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
