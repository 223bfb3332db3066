"""A block's tail computes what its layers compute: values, gradients, running statistics, in every precision, and in
fewer passes.
"""

import copy
import json
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from senet.config import SE, Basic, Bottleneck, CifarStem, ResNet, Stem
from senet.execution import tail
from senet.models import build
from senet.models.resnet import Block, PreactivationBlock
from tests.helpers import ROOT, environment

NET = Bottleneck(widths=(8,), blocks=(1,), expansion=2)
BASIC = Basic(widths=(8,), blocks=(1,), expansion=1)
BLOCKS: dict[str, tuple[ResNet, SE | None]] = {
    "standard": (NET, SE(ratio=4)),
    "biased": (NET, SE(ratio=4, bias=not SE().bias)),
    "tanh": (NET, SE(ratio=4, gate="tanh")),
    "relu": (NET, SE(ratio=4, gate="relu")),
    "none": (NET, None),
    "pre": (NET, SE(ratio=4, place="pre")),
    "identity": (NET, SE(ratio=4, place="identity")),
    "post": (NET, SE(ratio=4, place="post")),
    "conv3x3": (NET, SE(ratio=4, place="conv3x3")),
    "basic": (BASIC, SE(ratio=4)),
    "basic none": (BASIC, None),
}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def make(name: str, inputs: int = 12, stride: int = 2) -> tuple[Block, Block]:
    """A block with statistics as after some training, and its copy with the analytic tail."""
    net, se = BLOCKS[name]
    torch.manual_seed(0)
    plain = Block(net, inputs, 8, stride, se)
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.5)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, -1, 1.5)
            nn.init.uniform_(module.bias, -1, 1)
    other = copy.deepcopy(plain)
    other.tail = tail.of(other, "analytic")
    assert other.tail is tail.analytic
    return plain, other


def results(block: Block, x: Tensor, weights: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Output, gradients and buffers of one step whose loss weighs the output."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    out = block(x)
    out.backward(weights.to(out.dtype))
    assert x.grad is not None
    yield from (("out", out.detach()), ("x", x.grad))
    assert all(
        parameter.grad.stride() == parameter.stride() for parameter in block.parameters() if parameter.grad is not None
    )
    yield from ((name, parameter.grad) for name, parameter in block.named_parameters() if parameter.grad is not None)
    yield from block.named_buffers()


def compare(plain: Block, other: Block, x: Tensor, weights: Tensor, tolerance: float) -> None:
    expected, got = dict(results(plain, x, weights)), dict(results(other, x, weights))
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        assert value.dtype == got[name].dtype
        scale = max(1.0, float(value.abs().max()))
        assert float((value - got[name]).abs().max()) <= tolerance * scale, name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", BLOCKS)
def test_equals_the_layers_in_training_and_evaluation(name: str, layout: str) -> None:
    for inputs, stride in ((12, 2), (16 if "basic" not in name else 8, 1)):  # with a projection and without
        plain, other = (block.double().to(memory_format=LAYOUTS[layout]) for block in make(name, inputs, stride))
        x = torch.randn(3, inputs, 6, 5, dtype=torch.float64).contiguous(memory_format=LAYOUTS[layout])
        weights = torch.randn_like(plain.eval()(x))
        for training in (True, False, True):
            compare(plain.train(training), other.train(training), x, weights, 1e-11)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("se", [True, False])
def test_gradients_are_those_of_differences(se: bool, training: bool) -> None:
    _, block = make("standard" if se else "none")
    block = block.double().train(training)
    bn = block.branch.bn3
    bn.momentum = 0.0  # differences need a function without memory
    x, shortcut = (torch.randn(2, 16, 3, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    parameters = [bn.weight, bn.bias, *block.se.parameters()]

    def f(*_: Tensor) -> Tensor:
        return tail._tail(x, shortcut, bn, block.se if se else None, False)

    assert torch.autograd.gradcheck(f, (x, shortcut, *parameters))


@pytest.mark.parametrize("momentum", [0.1, 0.01, None])
def test_running_statistics_are_batch_norms(momentum: float | None) -> None:
    plain, other = make("standard")
    for block in (plain, other):
        block.branch.bn3.momentum = momentum
    for seed in range(3):
        torch.manual_seed(seed)
        x = torch.randn(2, 12, 4, 4)
        with torch.no_grad():
            plain(x), other(x)
    bn, own = plain.branch.bn3, other.branch.bn3
    assert torch.equal(bn.num_batches_tracked, own.num_batches_tracked)
    for one, two in ((bn.running_mean, own.running_mean), (bn.running_var, own.running_var)):
        assert one.dtype == two.dtype
        torch.testing.assert_close(one, two, rtol=2e-6, atol=1e-6)


def test_statistics_that_are_not_tracked_are_the_batchs() -> None:
    plain, other = (block.double() for block in make("standard"))
    for block in (plain, other):
        old = block.branch.bn3
        block.branch.bn3 = nn.BatchNorm2d(16, track_running_stats=False).double()
        block.branch.bn3.load_state_dict({"weight": old.weight, "bias": old.bias})
    x = torch.randn(3, 12, 6, 6, dtype=torch.float64)
    weights = torch.randn(3, 16, 3, 3, dtype=torch.float64)
    for training in (True, False):
        compare(plain.train(training), other.train(training), x, weights, 1e-11)


def test_one_value_in_a_channel_is_refused_as_by_batch_norm() -> None:
    plain, other = make("standard")
    for block in (plain, other):
        block.branch.bn1.eval(), block.branch.bn2.eval()
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            block(torch.randn(1, 12, 2, 2))


def test_statistics_within_inference_mode() -> None:
    plain, other = make("standard")
    x = torch.randn(2, 12, 4, 4)
    with torch.inference_mode():
        torch.testing.assert_close(plain.eval()(x), other.eval()(x))


def errors(block: Block, x: Tensor, shortcut: Tensor, weights: Tensor, fused: bool) -> dict[str, float]:
    """Relative errors of one step of the tail, or of its layers, against fp64: output, gradients, running variance."""

    def step(block: Block, fused: bool, dtype: torch.dtype) -> dict[str, Tensor]:
        a, b = (t.detach().to(dtype).requires_grad_() for t in (x, shortcut))
        bn = block.branch.bn3
        with torch.autocast("cpu", x.dtype, enabled=dtype in (torch.bfloat16, torch.float16)):
            if fused:
                out = tail._tail(a, b, bn, None if isinstance(block.se, nn.Identity) else block.se, False)
            else:
                out = torch.relu(block.se(bn(a)) + b)
        out.backward(weights.to(dtype))
        gradients = {name: parameter.grad for name, parameter in block.named_parameters() if parameter.grad is not None}
        return {"out": out.detach(), "x": a.grad, "shortcut": b.grad, "variance": bn.running_var, **gradients}

    exact = step(copy.deepcopy(block).double(), False, torch.float64)
    got = step(copy.deepcopy(block), fused, x.dtype)
    return {name: float((got[name] - value).norm() / value.norm()) for name, value in exact.items()}


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["standard", "tanh", "biased", "none"])
def test_low_precision_is_no_worse_than_layer_by_layer(name: str, precision: torch.dtype) -> None:
    block, _ = make(name)
    x, shortcut, weights = (torch.randn(8, 16, 12, 12).to(precision) for _ in range(3))
    usual, ours = (errors(block, x + 0.5, shortcut, weights, fused) for fused in (False, True))
    for key, error in ours.items():
        assert error <= 1.5 * usual[key] + 1e-6, (key, error, usual[key])


@pytest.mark.parametrize("ratio", [1e2, 1e3, 1e4])
@pytest.mark.parametrize("name", ["standard", "none"])
@pytest.mark.parametrize("statistics", [tail.Operators.statistics, tail.shifted])
def test_a_mean_far_from_zero_costs_no_digits(
    statistics: Callable[[Tensor], Tensor], name: str, ratio: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail.Operators, "statistics", staticmethod(statistics))
    block, _ = make(name)
    mean = ratio * torch.linspace(-2, 2, 16)
    x, shortcut, weights = (torch.randn(8, 16, 8, 8) for _ in range(3))
    usual, ours = (errors(block, x + mean[:, None, None], shortcut, weights, fused) for fused in (False, True))
    for key, error in ours.items():  # plain sums of squares would lose ratio**2; on the CPU BatchNorm2d sums in fp64
        assert error <= 1.5 * usual[key] + 2 * ratio * torch.finfo(torch.float32).eps, (key, error, usual[key])


def test_other_blocks_stay_as_they_are() -> None:
    for squeeze in ("max", "none"):
        block = Block(NET, 16, 8, 1, SE(ratio=4, squeeze=squeeze))
        assert tail.of(block, "analytic") is block.plain
    assert tail.of(PreactivationBlock(NET, 16, 8, 1, None), "analytic") is PreactivationBlock.plain
    assert tail.of(Block(NET, 16, 8, 1, SE(ratio=4, squeeze="max", place="pre")), "analytic") is tail.analytic
    assert tail.of(Block(NET, 16, 8, 1, None), "plain") is Block.plain


def test_nothing_is_kept_but_input_and_output() -> None:
    _, block = make("standard")
    x, shortcut = (torch.randn(4, 16, 8, 8, requires_grad=True) for _ in range(2))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        out = tail._tail(x, shortcut, block.branch.bn3, block.se, False)
    large = {t.data_ptr() for t in kept if t.numel() == x.numel()}
    assert large == {x.data_ptr(), out.data_ptr()}


COUNT = """
import json, logging, torch, torch._dynamo, torch._inductor.config as inductor, torch._inductor.metrics as metrics
from torch._inductor.async_compile import AsyncCompile
from senet.config import SE, Bottleneck
from senet.execution import tail
from senet.models.resnet import Block
torch._logging.set_logs(inductor_metrics=True)  # counts only when it is to log
logging.getLogger("torch").handlers.clear()
inductor.force_disable_caches, inductor.compile_threads, inductor.cpp.simdlen = True, 1, 1
AsyncCompile.cpp_pybinding = lambda *_, **__: lambda *_: None  # plans are counted, not run
found = {}
cases = [("layers", SE(), "channels_last", 56), ("tail", SE(), "contiguous", 56),
    ("tail", SE(), "channels_last", 56), ("tail", SE(), "channels_last", 14)]
for form, se, layout, side in [*cases, ("tail", None, "channels_last", 56)]:
    memory = {"memory_format": torch.channels_last if layout == "channels_last" else torch.contiguous_format}
    block = Block(Bottleneck(), 256, 64, 1, se).to(**memory)
    bn, squeeze = block.branch.bn3, block.se
    def layers(x, shortcut):
        return torch.relu(squeeze(bn(x)) + shortcut)
    def fused(x, shortcut):
        return tail._tail(x, shortcut, bn, squeeze if se else None, False)
    torch._dynamo.reset()
    metrics.reset()
    x, shortcut, grad = (torch.zeros(8, 256, side, side).contiguous(**memory).requires_grad_() for _ in range(3))
    out = torch.compile(layers if form == "layers" else fused, fullgraph=True, dynamic=False)(x, shortcut)
    forward = metrics.num_bytes_accessed
    out.backward(grad)
    size = x.numel() * x.element_size()
    found[f"{form} {'se' if se else 'no se'} {layout} {side}"] = (
        forward / size, (metrics.num_bytes_accessed - forward) / size
    )
print(json.dumps(found))
"""


def script(text: str, **more: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=ROOT, env=environment(**more), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.full  # tests/nullgpu counts them as a GPU would compile them
def test_inductor_counts_few_passes() -> None:
    found = json.loads(script(COUNT))
    for key, (forward, backward) in found.items():
        allowed = 0.1 + (
            0 if "56" in key else 0.1
        )  # numbers of channels are counted too, and are more beside small maps
        if key.startswith("tail"):
            assert 4 <= forward <= 4 + allowed, found
            assert 7 <= backward <= 8 + allowed, found
    forward, backward = found["layers se channels_last 56"]
    assert forward > 7.2 and backward > 9.2, found  # noqa: PT018


def test_whole_nets_agree() -> None:
    x50 = {"widths": (16, 32), "expansion": 2, "groups": 4, "stride_at": "conv3x3"}
    s154 = {"widths": (16, 32), "expansion": 1, "reduce": 0.5, "groups": 4, "stride_at": "conv3x3"}
    nets = [
        Bottleneck(blocks=(1, 2), widths=(8, 16), se=SE(ratio=4)),
        Bottleneck(blocks=(1, 2), widths=(8, 16)),
        Bottleneck(blocks=(1, 2), **x50, se=SE(ratio=4)),
        Bottleneck(blocks=(1, 2), **s154, projection="conv3x3", stem=Stem("conv3x3x3", "ceil"), se=SE(ratio=4)),
        Basic(blocks=(3, 3, 3), widths=(16, 32, 64), expansion=1, stem=CifarStem(), se=SE()),
    ]
    for net in nets:
        torch.manual_seed(0)
        plain = build(net, 10).double()
        other = copy.deepcopy(plain)
        for block in other.modules():
            if isinstance(block, Block):
                block.tail = tail.of(block, "analytic")
        x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
        logits = [model(x) for model in (plain, other)]
        torch.testing.assert_close(*logits, rtol=1e-9, atol=1e-9)
        for each in logits:
            each.square().sum().backward()
        for one, two in zip(plain.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(one.grad, two.grad, rtol=1e-9, atol=1e-9)
        for one, two in zip(plain.buffers(), other.buffers(), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)
