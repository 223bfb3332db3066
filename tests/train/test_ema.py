"""The average of the weights: of the steps that were made, no part of the training, and the same after a resume."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from senet import config
from senet.distributed import World
from senet.execution.execution import Execution
from senet.system import faults
from senet.train.ema import EMA
from senet.train.hooks import Faults, HookList
from senet.train.meter import Meter
from senet.train.trainer import Trainer
from tests.helpers import assert_same
from tests.train.test_step import CONFIG, CPU, loaded


def made(graph: bool = False) -> tuple[Trainer, EMA, HookList]:
    ema = EMA(config.EMA(decay=0.9))
    hooks = HookList(Faults(), ema)
    trainer = Trainer.build(CONFIG, World(0, 1, CPU), Execution(), hooks)
    if graph:  # see trainer_of
        trainer = Trainer(CONFIG, trainer.world, trainer.net, trainer.optimiser, Execution(graph=True), hooks)
    return trainer, ema, hooks


@pytest.mark.parametrize("graph", [False, True])
def test_it_averages_the_steps_that_were_made_and_goes_on_where_it_was(
    monkeypatch: pytest.MonkeyPatch, graph: bool
) -> None:
    monkeypatch.setattr(faults, "_ARMED", (faults.Fault("nan", "data", 3),))
    loader = loaded(CONFIG)
    trainer, _, hooks = made(graph)
    name = "fc.weight"
    trainer.net.state_dict()[name].mul_(2)  # weights that come after the trainer was made
    wanted = trainer.net.state_dict()[name].double()
    for done in trainer.steps(loader, 0, 0, Meter(CPU)):
        step = done - 1
        decay = min(0.9, (1 + step) / (10 + step))
        if step != 3:
            wanted = wanted * decay + trainer.net.state_dict()[name].double() * (1 - decay)
        if done == 2:
            states = deepcopy((dict(trainer.net.state_dict()), trainer.optimiser.state_dict(), hooks.state_dict()))
    assert trainer.guard.nonfinite_steps() == [3]
    state = hooks.state_dict()["EMA"]
    torch.testing.assert_close(state["net"][name].double(), wanted, rtol=1e-6, atol=1e-7)
    assert set(state["net"]) == set(trainer.net.state_dict())
    assert not any(part.isnan().any() for part in state["net"].values())

    resumed, other, its_hooks = made(graph)
    resumed.net.load_state_dict(states[0])
    resumed.optimiser.load_state_dict(states[1])
    its_hooks.load_state_dict(states[2])
    list(resumed.steps(loader, 0, 2, Meter(CPU)))
    loader.close()
    assert_same(hooks.state_dict(), its_hooks.state_dict())
    its_hooks.load_state_dict({})  # of a run that kept no average until now
    assert_same([p.detach() for p in resumed.net.parameters()], other.weights)


def test_it_stands_in_for_the_net_and_the_net_returns() -> None:
    trainer, ema, _ = made()
    loader = loaded(CONFIG)
    list(trainer.steps(loader, 0, 0, Meter(CPU)))
    loader.close()
    before = {name: part.clone() for name, part in trainer.net.state_dict().items()}
    with ema.in_net():
        assert_same(ema.state_dict()["net"], dict(trainer.net.state_dict()))
        trainer.statistics.unpack(trainer.statistics.pack() * 0)  # what becomes of the statistics in there is lost
    assert_same(before, dict(trainer.net.state_dict()))
    assert ema.state_dict()["net"]["stem.bn.running_var"].min() > 0
    without = Trainer.build(CONFIG, World(0, 1, CPU), Execution())
    loader = loaded(CONFIG)
    list(without.steps(loader, 0, 0, Meter(CPU)))
    loader.close()
    assert_same(before, dict(without.net.state_dict()))


def test_without_warm_up_every_step_decays_alike() -> None:
    assert EMA(config.EMA(decay=0.9, warmup=False)).decay(0) == 0.9
    assert [EMA(config.EMA(decay=0.9)).decay(step) for step in (0, 10, 1000)] == [0.1, 0.55, 0.9]
    assert replace(CONFIG, ema=None) == CONFIG
