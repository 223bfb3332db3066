"""The Triton kernels of a block's tail against PyTorch's operators: in the interpreter, as machine code, on a GPU."""

from pathlib import Path

import pytest
import torch

from senet.execution import tail
from tests.execution.test_tail import LAYOUTS, script

INTERPRET = """
import copy, torch
from senet.config import SE, Bottleneck
from senet.execution import tail
from senet.execution.execution import Execution, prepare
from senet.execution.kernels import Kernels
from senet.models.resnet import Block
from senet.execution.tail import Operators

def near(one, two, digits):
    assert one.dtype == two.dtype and one.shape == two.shape
    assert one.stride() == two.stride() or one.dim() < 4, (one.stride(), two.stride())
    torch.testing.assert_close(one.float(), two.float(), rtol=digits, atol=digits)

torch.manual_seed(0)
for shape in ((2, 70, 9, 7), (3, 5, 33, 40), (1, 16, 1, 1), (1, 3, 90, 70)):
    for layout in (torch.contiguous_format, torch.channels_last):
        for dtype, digits in ((torch.float32, 2e-5), (torch.bfloat16, 2e-2)):
            x, y, z = (torch.randn(shape).to(dtype).contiguous(memory_format=layout) for _ in range(3))
            x += 100 * torch.arange(shape[1])[:, None, None] % 300
            centre, slope, offset = Operators.statistics(x)[0], torch.randn(shape[:2]), torch.randn(shape[:2])
            out, tilt = Operators.join(x, y, centre, slope, offset), torch.randn(shape[1])
            calls = dict(statistics=(x,), join=(x, y, centre, slope, offset), sums=(z, out, x, centre))
            calls["gradient"] = z, x, centre, slope, tilt, offset
            for name, given in calls.items():
                one, two = getattr(Kernels, name)(*given), getattr(Operators, name)(*given)
                for a, b in zip(one, two, strict=True) if isinstance(one, tuple) else [(one, two)]:
                    near(a, b, digits * 10 if name in ("statistics", "sums") else digits)
                if dtype == torch.float32 and layout == torch.channels_last:
                    tests = "test_schema", "test_faketensor"
                    torch.library.opcheck(getattr(torch.ops.senet, f"tail_{name}").default, given, test_utils=tests)
nan = torch.full((1, 2, 2, 2), float("nan"))
assert Kernels.join(nan, nan, nan[:, :, 0, 0], nan[:, :, 0, 0], nan[:, :, 0, 0]).isnan().all()

for se in (SE(ratio=4), None):
    plain = Block(Bottleneck(widths=(8,), blocks=(1,)), 24, 8, 2, se)
    other = copy.deepcopy(plain)
    prepare(other, Execution(tail="triton")), prepare(plain, Execution())
    assert other.tail is tail.triton
    for training in (True, False):
        x = torch.randn(3, 24, 9, 9).contiguous(memory_format=torch.channels_last)
        for block in (plain, other):
            block.zero_grad()
            block.train(training)(x).square().sum().backward()
        for one, two in zip(plain.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-4)
        for one, two in zip(plain.buffers(), other.buffers(), strict=True):
            torch.testing.assert_close(one, two)
print("done")
"""


@pytest.mark.slow
def test_kernels_equal_the_operators_in_the_interpreter() -> None:
    pytest.importorskip("triton", reason="the package triton is not installed")
    assert script(INTERPRET, TRITON_INTERPRET="1") == "done"


BUILD = """
import re
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from senet.execution import kernels

for kernel in (kernels.statistics_kernel, kernels.join_kernel, kernels.sums_kernel, kernels.gradient_kernel):
    for last, aligned, wide in ((True, 1, "v4"), (False, 16, "v4"), (False, 4, "v2")):
        given = {"LAST": last, "ALIGNED": aligned, "PIXELS": 32 if last else 512, "CHANNELS": 64 if last else 4}
        kinds = {name: "*bf16" for name in ("x", "shortcut", "out", "grad", "d", "dx")}
        kinds |= {name: "i32" for name in ("count", "channels", "pixels", "length")}
        kinds |= {name: "constexpr" for name in given}
        names = kernel.arg_names
        signature = {name: kinds.get(name, "*fp32") for name in names}
        # As at a launch: pointers, channels and whole tiles are multiples of 16; of pixels only what is said of them.
        multiples = [name for name in names if signature[name].startswith("*") or name in ("channels", "length")]
        attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in multiples}
        constants = {(names.index(name),): value for name, value in given.items()}
        source = ASTSource(kernel, signature, constants, attributes)
        assembly = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4}).asm
        assert assembly["cubin"]
        assert f"ld.global.{wide}" in assembly["ptx"], (kernel, last, aligned)
        assert not re.search(r"ld\\.global\\.(b|u)16", assembly["ptx"]), (kernel, last, aligned)
        assert "atom" not in assembly["ptx"]
print("done")
"""


@pytest.mark.slow
def test_kernels_compile_for_a_gpu_with_wide_loads(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="the package triton is not installed")
    assert script(BUILD, TRITON_CACHE_DIR=str(tmp_path)) == "done"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(5, 64, 56, 56), (3, 70, 13, 9), (64, 2048, 7, 7), (2, 16, 300, 300)])
def test_kernels_equal_the_operators_on_a_gpu(shape: tuple[int, ...], layout: str, precision: torch.dtype) -> None:
    from senet.execution.kernels import Kernels

    torch.manual_seed(0)
    x, y, z = (
        torch.randn(shape, device="cuda").to(precision).contiguous(memory_format=LAYOUTS[layout]) for _ in range(3)
    )
    slope, offset = (torch.randn(shape[:2], device="cuda") for _ in range(2))
    centre, tilt = tail.Operators.statistics(x)[0], torch.randn(shape[1], device="cuda")
    out = tail.Operators.join(x, y, centre, slope, offset)
    calls = {"statistics": (x,), "join": (x, y, centre, slope, offset), "sums": (z, out, x, centre)}
    calls["gradient"] = z, x, centre, slope, tilt, offset
    for name, given in calls.items():
        ours, again, theirs = (getattr(source, name)(*given) for source in (Kernels, Kernels, tail.Operators))
        triples = zip(ours, again, theirs, strict=True) if isinstance(ours, tuple) else [(ours, again, theirs)]
        for one, same, two in triples:
            assert torch.equal(one, same)
            digits = 8 * torch.finfo(one.dtype).eps
            assert float((one.double() - two.double()).norm()) <= digits * (1 + float(two.double().norm()))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_offsets_beyond_32_bits_on_a_gpu() -> None:
    from senet.execution.kernels import Kernels

    if torch.cuda.mem_get_info()[0] < 20e9:
        pytest.skip("needs 20 GB of GPU memory")
    x = torch.ones(2, 1024, 1100, 1000, device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    x[-1] = 3
    mean, var = Kernels.statistics(x)
    assert mean[0].eq(1).all() and mean[1].eq(3).all() and var.eq(0).all()  # noqa: PT018
    one = torch.ones(2, 1024, device="cuda")
    assert Kernels.join(x, x, one, one, one)[-1].eq(6).all()
