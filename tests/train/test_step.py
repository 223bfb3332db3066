"""A training step: nothing in it waits for the device or grows with the net's depth, and it is the same in every way of
launching it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from senet.config import LARS, SGD, Cifar10, Config, Folder, from_dict
from senet.data.loader import Batch, TrainLoader
from senet.data.source import Source, train_loader
from senet.distributed import World
from senet.execution.execution import Execution
from senet.system import faults
from senet.train.cuda_graph import GraphedStep, obstacle
from senet.train.hooks import Faults
from senet.train.meter import Meter
from senet.train.optimiser import build as build_optimiser
from senet.train.trainer import DTYPES, Trainer
from tests.helpers import TINY, assert_same, run

CPU = torch.device("cpu")
CONFIG = from_dict(
    {**TINY, "data": {"set": "synthetic", "classes": 10, "crop": 32, "train_images": 62, "val_images": 10}}
)
PRECISIONS = ["fp32", "bf16", "fp16"]
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def loaded(
    config: Config, micro_batch: int = 12, device: torch.device = CPU, root: Path | None = None, backend: str = "auto"
) -> TrainLoader:
    dtype = DTYPES[config.precision]
    return train_loader(
        config.data, Source(root, backend, workers=1), config.batch, micro_batch, config.seed, 0, 1, device, dtype
    )


def trainer_of(config: Config, device: torch.device = CPU, graph: bool = False) -> Trainer:
    trainer = Trainer.build(config, World(0, 1, device), Execution(), Faults())
    # On a CPU `Execution(graph=True)` is refused; GraphedStep itself calls the step on its fixed tensors there.
    return (
        Trainer(config, trainer.world, trainer.net, trainer.optimiser, Execution(graph=True), Faults())
        if graph
        else trainer
    )


def state(trainer: Trainer, meter: Meter) -> dict[str, Any]:
    momenta = trainer.optimiser.state_dict()["state"]
    return {
        "net": dict(trainer.net.state_dict()),
        "momenta": momenta,
        "scaler": trainer.scaler.state_dict(),
        "sums": meter.sums,
    }


class Counted(TorchDispatchMode):
    """Counts operators, and of them those whose result the host must wait for."""

    READS = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "unique", "_unique2", "bincount")

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[str] = []
        self.reads: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        self.operators.append(name)
        if name in self.READS:
            self.reads.append(name)
        return function(*args, **(kwargs or {}))


@contextmanager
def counted() -> Iterator[Counted]:
    """All ways in which this thread can read a tensor, the loader's thread not being this one."""
    mode = Counted()

    def watch(name: str, real: Any) -> Any:
        def read(*args: Any, **kwargs: Any) -> Any:
            mode.reads.append(name)
            return real(*args, **kwargs)

        return read

    names = ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__", "__array__")
    with pytest.MonkeyPatch.context() as patch, mode:
        for name in names:
            patch.setattr(Tensor, name, watch(name, getattr(Tensor, name)))
        yield mode


# ------------------------------------------------------------------------------------------------------ host and device


@pytest.mark.parametrize(("precision", "matmul"), [("tf32", "high"), ("fp32", "highest"), ("bf16", "highest")])
def test_numbers_are_rounded_to_tf32_only_if_the_config_says_so(precision: str, matmul: str) -> None:
    """torch's own default rounds in convolutions on a GPU, and in products not."""
    Trainer.build(replace(CONFIG, precision=precision), World(0, 1, CPU), Execution())  # type: ignore[arg-type]
    assert torch.backends.cudnn.allow_tf32 == (precision == "tf32")
    assert torch.get_float32_matmul_precision() == matmul


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("micro_batch", [12, 6])
def test_no_step_reads_from_the_device_until_it_is_asked_to(precision: str, micro_batch: int) -> None:
    config = replace(CONFIG, precision=precision)  # type: ignore[arg-type]
    trainer, meter, loader = trainer_of(config), Meter(CPU), loaded(config, micro_batch)
    with counted() as mode:
        steps = list(trainer.steps(loader, 0, 0, meter))
        assert steps == [1, 2, 3, 4, 5]
        assert mode.reads == []
        assert trainer.guard.nonfinite_steps() == []
        assert meter.read()["images"] == 60
        assert mode.reads  # the counter counts
    loader.close()


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # which says that it is a prototype
def test_no_step_waits_for_the_gpu(precision: str) -> None:
    device = torch.device("cuda", 0)
    config = replace(CONFIG, precision=precision)  # type: ignore[arg-type]
    for graph in (False, True):
        trainer, meter, loader = trainer_of(config, device, graph), Meter(device), loaded(config, device=device)
        steps = trainer.steps(loader, 0, 0, meter)
        next(steps)  # kernels are loaded, the graph is recorded
        try:
            torch.cuda.set_sync_debug_mode("error")
            assert list(steps) == [2, 3, 4, 5]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert trainer.guard.nonfinite_steps() == []
        loader.close()


def test_the_loop_adds_as_many_operators_to_a_deep_net_as_to_a_shallow_one() -> None:
    added = []
    for blocks in ((1, 1), (3, 3)):
        config = replace(CONFIG, net=replace(CONFIG.net, blocks=blocks))
        trainer, meter, loader = trainer_of(config), Meter(CPU), loaded(config)
        batch = next(loader.batches(0, 0))
        net, optimiser = trainer.net, build_optimiser(trainer.net, config.optim)
        with Counted() as bare:
            F.cross_entropy(net(batch.images), batch.labels).backward()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        with Counted() as ours:
            trainer.step([batch], meter)
        added.append(len(ours.operators) - len(bare.operators))
        loader.close()
    assert added[0] == added[1]


# ---------------------------------------------------------------------------------------------------------- leaving out


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_changes_nothing_but_the_scale(precision: str, value: float) -> None:
    trainer, meter = trainer_of(replace(CONFIG, precision=precision)), Meter(CPU)  # type: ignore[arg-type]
    images = torch.randn(12, 3, 32, 32)
    labels = torch.arange(12) % 10
    assert trainer.step([Batch(images, labels)], meter)
    before = {name: part.clone() for name, part in trainer.net.state_dict().items() if "num_batches" not in name}
    momenta = [s["momentum_buffer"].clone() for s in trainer.optimiser.state.values()]
    scale = trainer.scaler.get_scale()
    images[3] = value
    assert not trainer.step([Batch(images, labels)], meter)
    assert_same(before, {name: part for name, part in trainer.net.state_dict().items() if name in before})
    assert_same(momenta, [s["momentum_buffer"] for s in trainer.optimiser.state.values()])
    assert trainer.scaler.get_scale() == (scale / 2 if precision == "fp16" else scale)
    assert all(p.grad is None for p in trainer.net.parameters())


# ---------------------------------------------------------------------------------------------------------------- graph


def trained(config: Config, device: torch.device, graph: bool, epochs: int = 2) -> tuple[Trainer, Meter]:
    trainer, meter, loader = trainer_of(config, device, graph), Meter(device), loaded(config, device=device)
    for epoch in range(epochs):
        assert len(list(trainer.steps(loader, epoch, 0, meter))) == 5
    loader.close()
    return trainer, meter


@pytest.mark.parametrize("mixup", [0.0, 0.2])
def test_a_step_on_fixed_places_is_the_same_step(monkeypatch: pytest.MonkeyPatch, mixup: float) -> None:
    """What a graph replays, called instead; also where a step is left out."""
    monkeypatch.setattr(faults, "_ARMED", (faults.Fault("nan", "data", 3),))
    config = replace(CONFIG, data=replace(CONFIG.data, augment=replace(CONFIG.data.augment, mixup=mixup)))
    plain, sums = trained(config, CPU, graph=False)
    fixed, fixed_sums = trained(config, CPU, graph=True)
    assert fixed.graphed is not None
    assert fixed.graphed.records == 1
    assert plain.guard.nonfinite_steps() == fixed.guard.nonfinite_steps() == [3]
    torch.testing.assert_close(state(fixed, fixed_sums), state(plain, sums), rtol=1e-6, atol=1e-7)
    assert fixed.optimiser.param_groups[0]["lr"] == plain.optimiser.param_groups[0]["lr"]


def test_other_shapes_meters_states_and_modes_are_recorded_anew() -> None:
    trainer, meter = trainer_of(CONFIG, graph=True), Meter(CPU)
    replay = trainer.graphed
    assert isinstance(replay, GraphedStep)

    def batch(side: int) -> Batch:
        return Batch(torch.randn(12, 3, side, side), torch.arange(12) % 10)

    for given, sums, records in (
        (batch(32), meter, 1),
        (batch(32), meter, 1),
        (batch(16), meter, 2),
        (batch(16), Meter(CPU), 3),
    ):
        assert replay([given], sums)
        assert replay.records == records
    trainer.optimiser.load_state_dict(trainer.optimiser.state_dict())  # puts other tensors in the place of the momenta
    loaded_momentum = next(iter(trainer.optimiser.state.values()))["momentum_buffer"]
    before = loaded_momentum.clone()
    assert replay([batch(16)], meter)
    assert replay.records == 4
    assert not torch.equal(before, loaded_momentum)
    for module in trainer.net.modules():
        module.train(not isinstance(module, nn.BatchNorm2d))  # frozen
    frozen = trainer.statistics.pack()
    assert replay([batch(16)], meter)
    assert replay.records == 5
    assert torch.equal(trainer.statistics.pack(), frozen)


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_graph_trains_as_its_kernels_do_one_by_one(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    """With dropout, a step left out, and a rate that changes."""
    monkeypatch.setattr(faults, "_ARMED", (faults.Fault("nan", "data", 3),))
    device = torch.device("cuda", 0)
    config = replace(CONFIG, precision=precision)  # type: ignore[arg-type]
    plain, sums = trained(config, device, graph=False)
    graphed, graphed_sums = trained(config, device, graph=True)
    assert plain.guard.nonfinite_steps() == graphed.guard.nonfinite_steps() == [3]
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if precision == "fp32" else {"rtol": 2e-2, "atol": 2e-3}
    torch.testing.assert_close(dict(graphed.net.state_dict()), dict(plain.net.state_dict()), **tolerance)
    assert graphed_sums.sums[3] == sums.sums[3] == 120


def test_where_a_step_cannot_be_a_graph_the_reason_is_told() -> None:
    gpu = torch.device("cuda", 0)
    assert "need a GPU" in (obstacle(CPU, 1, 1, SGD()) or "")
    assert "there are 4" in (obstacle(gpu, 4, 1, SGD()) or "")
    assert "--largest-batch" in (obstacle(gpu, 1, 2, SGD()) or "")
    assert "lars waits for the device" in (obstacle(gpu, 1, 1, LARS()) or "")
    assert obstacle(gpu, 1, 1, SGD()) is None


# --------------------------------------------------------------------------------------------------------------- loader


@pytest.mark.parametrize("backend", ["dali", "pillow", "cifar"])
def test_images_for_bf16_are_what_autocast_makes_of_them(backend: str, images: Path, cifar: Path) -> None:
    data, root = Folder(classes=3, crop=32, resize=40), images
    if backend == "cifar":
        data, root, backend = Cifar10(pad=4), cifar, "auto"

    def made(config: Config) -> list[Batch]:
        loader = loaded(config, root=root, backend=backend)
        batches = list(loader.batches(0, 0))
        loader.close()
        return batches

    config = replace(CONFIG, data=data)
    full, half = made(replace(config, precision="fp32")), made(replace(config, precision="bf16"))
    assert len(half) == len(full) > 0
    for one, other in zip(full, half, strict=True):
        assert other.images.dtype == torch.bfloat16
        assert other.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(one.images.bfloat16(), other.images)
        assert torch.equal(one.labels, other.labels)


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_gpu_is_given_the_same_images(precision: str) -> None:
    config = replace(CONFIG, precision=precision)  # type: ignore[arg-type]
    sides = [loaded(config, device=device) for device in (CPU, torch.device("cuda", 0))]
    for one, other in zip(*(loader.batches(0, 0) for loader in sides), strict=True):
        torch.testing.assert_close(
            one.images, other.images.cpu(), rtol=1e-2 if precision != "fp32" else 1e-5, atol=1e-5
        )
        assert other.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(one.labels, other.labels.cpu())


# ------------------------------------------------------------------------------------------------------------ two ranks


def on_two_ranks(what: str, **more: str) -> list[dict[str, Any]]:
    """What tests/train/ranks.py says on each of two ranks."""
    done = run("tests.train.ranks", what, ranks=2, **more)
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(told) == 2
    return told


def test_a_step_of_two_ranks_reduces_each_bucket_once_and_nothing_else() -> None:
    ranks = on_two_ranks("collectives")
    for rank in ranks:
        assert rank["buckets"] > 1
        assert rank["bytes"] == rank["gradient_bytes"]
        for kind in ("none", "bf16"):
            assert rank[kind]["reductions"] == rank[kind]["all"] == rank["buckets"] + 1  # and one question
            assert rank[kind]["parameters"] == ranks[0][kind]["parameters"]  # after two steps, to the last bit
        assert rank["none"]["error"] < 1e-6  # of the gradients, against one process with both halves of the batch
        assert 1e-6 < rank["bf16"]["error"] < 1e-2


@pytest.mark.slow
def test_compiled_blocks_under_ddp_reduce_the_same_gradients_while_they_compute() -> None:
    for rank in on_two_ranks("compiled"):
        plain, own = rank["channels_last"], rank["channels_last analytic compile"]
        assert own["error"] < 1e-5
        assert own["reductions"] == plain["reductions"] == 3
        assert plain["early"]
        assert own["early"]


def test_momenta_are_there_before_the_first_step() -> None:
    net = nn.Linear(3, 2)
    optimiser = build_optimiser(net, SGD(lr=0.1))
    assert [s["momentum_buffer"].tolist() for s in optimiser.state.values()] == [
        p.mul(0).tolist() for p in net.parameters()
    ]
