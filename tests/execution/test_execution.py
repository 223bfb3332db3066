"""An execution changes how a net is computed, never what: and one that cannot be followed, or does nothing,
is refused.
"""

import copy
import os

import pytest
import torch
from torch import nn

from senet.config import SE, Basic, Bottleneck, CifarStem, Net, Timm
from senet.errors import UsageError
from senet.execution.execution import Execution, choices, prepare
from senet.models import build
from senet.models.resnet import Block

SMALL = Bottleneck(blocks=(1, 1), widths=(8, 16), se=SE(ratio=4))


def test_survives_a_checkpoint() -> None:
    execution = Execution("contiguous", "analytic", compile=True)
    assert Execution.from_dict(execution.to_dict()) == execution
    assert str(execution) == "contiguous analytic compile"
    assert Execution.from_dict({}) == Execution()
    with pytest.raises(UsageError, match=r"execution\.tail: 'fused' is none of plain, analytic, triton"):
        Execution.from_dict({"tail": "fused"})
    with pytest.raises(UsageError, match=r"execution\.compile: 1 is none of"):
        Execution.from_dict({"compile": 1})
    with pytest.raises(UsageError, match=r"execution\.fast: no such setting"):
        Execution.from_dict({"fast": True})


def test_state_and_results_stay_and_one_net_can_be_prepared_again() -> None:
    torch.manual_seed(0)
    net = build(SMALL, 10).double()
    plain, names, x = copy.deepcopy(net), list(net.state_dict()), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    for execution in (
        Execution(),
        Execution("contiguous", "analytic"),
        Execution("channels_last", "analytic"),
        Execution("contiguous"),
    ):
        prepare(net, execution)
        assert list(net.state_dict()) == names
        assert net.stages.stage2[0].branch.conv2.weight.is_contiguous(memory_format=execution.memory_format)
        assert all(
            (m.tail is not m.plain) == (execution.tail != "plain") for m in net.modules() if isinstance(m, Block)
        )
        torch.testing.assert_close(net(x), plain(x), rtol=1e-9, atol=1e-9)
    copy.deepcopy(prepare(net, Execution(tail="analytic")))(x)


@pytest.mark.parametrize(
    ("net", "execution", "message"),
    [
        (
            Timm("resnet18"),
            Execution(tail="analytic"),
            "--tail analytic would have no effect: no block of this net",
        ),
        (
            Bottleneck(**{**SMALL.__dict__, "preactivation": True}),
            Execution(tail="analytic"),
            "would have no effect: no block of this net",
        ),
        (
            Bottleneck(**{**SMALL.__dict__, "se": SE(squeeze="max")}),
            Execution(tail="analytic"),
            "would have no effect: no block of this net",
        ),
        (SMALL, Execution(tail="triton"), "--tail triton needs"),
        (SMALL, Execution(graph=True), "--graph would have no effect"),
    ],
)
def test_refuses_what_would_have_no_effect(net: Net, execution: Execution, message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        prepare(build(net, 10), execution)


def test_refuses_to_compile_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    monkeypatch.delenv("CXX", raising=False)
    net = build(SMALL, 10)
    with pytest.raises(UsageError, match=r"--compile needs a compiler.*g\+\+"):
        prepare(net, Execution(compile=True))
    assert not any(execution.compile for execution in choices(net, torch.device("cpu")))


def test_choices_are_what_can_be_done() -> None:
    on_cpu = choices(build(SMALL, 10), torch.device("cpu"))
    assert on_cpu[0] == Execution()
    assert len(set(on_cpu)) == len(on_cpu)
    assert Execution("contiguous") in on_cpu
    assert all(
        execution.tail in ("plain", "analytic") and execution.compile >= (execution.tail == "analytic")
        for execution in on_cpu
    )
    assert {execution.tail for execution in choices(build(Timm("resnet18"), 10), torch.device("cpu"))} == {"plain"}
    small = build(Bottleneck(blocks=(1,), widths=(8,), stem=CifarStem()), 10)
    assert any(execution.graph for execution in choices(small, torch.device("cuda")))
    assert not any(execution.graph for execution in choices(build(SMALL, 10), torch.device("cuda")))


def test_compilation_changes_no_name_and_can_be_undone() -> None:
    """What compiled blocks compute is compared in tests/train/test_step.py."""
    net = build(Basic(blocks=(3,), widths=(16,), expansion=1, stem=CifarStem(), se=SE(ratio=4)), 10)
    names = list(net.state_dict())
    prepare(net, Execution(tail="analytic", compile=True))
    assert list(net.state_dict()) == names
    assert any(module._compiled_call_impl is not None for module in net.modules())
    prepare(net, Execution())
    assert all(module._compiled_call_impl is None for module in net.modules() if isinstance(module, nn.Module))
