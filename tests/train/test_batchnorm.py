"""Batch normalisation that is frozen, computed anew or synchronised."""

from __future__ import annotations

import itertools
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn

from senet.config import BatchNorm, Config, Step
from senet.distributed import World
from senet.errors import UsageError
from senet.execution.execution import Execution, prepare
from senet.models import build
from senet.train.hooks import Hooks
from senet.train.meter import Meter
from senet.train.trainer import Trainer
from tests.helpers import assert_same
from tests.train.test_step import CONFIG, CPU, loaded


def with_bn(**settings: object) -> Config:
    return replace(CONFIG, bn=BatchNorm(**settings))  # type: ignore[arg-type]


def made(config: Config, execution: Execution, graph: bool) -> Trainer:
    trainer = Trainer.build(config, World(0, 1, CPU), execution)
    if not graph:
        return trainer
    return Trainer(config, trainer.world, trainer.net, trainer.optimiser, replace(execution, graph=True), Hooks())


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("execution", [Execution(), Execution(tail="analytic")], ids=str)
def test_frozen_it_stays_as_it_is_while_the_rest_learns(execution: Execution, graph: bool) -> None:
    trainer, loader = made(with_bn(freeze=1), execution, graph), loaded(CONFIG)
    states = []
    for epoch in range(3):
        list(trainer.steps(loader, epoch, 0, Meter(CPU)))
        states.append(deepcopy((trainer.net.state_dict(), trainer.optimiser.state_dict())))
    norms = {name for name, module in trainer.net.named_modules() if isinstance(module, nn.BatchNorm2d)}
    frozen = {name for name in states[0][0] if name.rpartition(".")[0] in norms}
    assert len(frozen) == 5 * len(norms) > 0
    unfrozen = Trainer.build(CONFIG, World(0, 1, CPU), execution)
    list(unfrozen.steps(loader, 0, 0, Meter(CPU)))
    loader.close()
    assert_same(dict(unfrozen.net.state_dict()), dict(states[0][0]))  # nothing happens before its epoch
    for (before, _), (after, _) in itertools.pairwise(states):
        assert {name for name in before if torch.equal(before[name], after[name])} == frozen
    numbers = [number for number, p in enumerate(trainer.parameters) if p in set(trainer.frozen)]
    assert len(numbers) == 2 * len(norms)


def test_frozen_the_fused_tail_trains_as_layer_by_layer() -> None:
    nets = []
    for execution in (Execution(), Execution(tail="analytic")):
        trainer, loader = made(with_bn(freeze=0), execution, False), loaded(CONFIG)
        list(trainer.steps(loader, 0, 0, Meter(CPU)))
        loader.close()
        nets.append(dict(trainer.net.state_dict()))
    torch.testing.assert_close(nets[0], nets[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("execution", [Execution(), Execution(tail="analytic")], ids=str)
def test_computed_anew_statistics_are_those_of_the_images_for_these_weights(execution: Execution) -> None:
    config = replace(with_bn(recalibrate=3), schedule=Step(milestones=()))
    trainer, loader = made(config, execution, False), loaded(config, micro_batch=6)
    before = {name: p.detach().clone() for name, p in trainer.net.named_parameters()}
    norm = next(module for module in trainer.net.modules() if isinstance(module, nn.BatchNorm2d))
    outputs: list[torch.Tensor] = []
    handle = norm.register_forward_hook(lambda module, inputs, output: outputs.append(inputs[0].detach()))
    trainer.recalibrate(loader, 0)
    handle.remove()
    assert len(outputs) == 3 * 2
    torch.testing.assert_close(norm.running_mean, torch.stack([x.mean((0, 2, 3)) for x in outputs]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([x.var((0, 2, 3)) for x in outputs]).mean(0))
    assert norm.momentum == 0.1
    assert_same(before, {name: p.detach() for name, p in trainer.net.named_parameters()})
    once = trainer.statistics.pack()
    trainer.statistics.unpack(once * 0)
    trainer.recalibrate(loader, 0)
    loader.close()
    assert torch.equal(trainer.statistics.pack(), once)  # they depend on weights and position alone


def test_synchronised_it_is_refused_where_it_cannot_be() -> None:
    with pytest.raises(
        UsageError, match=r"bn\.sync: SyncBatchNorm needs GPUs, and this runs on CPUs; set bn.sync=false"
    ):
        Trainer.build(with_bn(sync=True), World(0, 2, CPU), Execution())
    Trainer.build(with_bn(sync=True), World(0, 1, CPU), Execution(tail="analytic"))  # of one rank it is the same
    net = nn.SyncBatchNorm.convert_sync_batchnorm(build(CONFIG.net, 10))
    with pytest.raises(UsageError, match=r"--tail analytic takes statistics of a rank's own images, and bn\.sync is"):
        prepare(net, Execution(tail="analytic"))
