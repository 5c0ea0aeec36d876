"""`depthwise_gelu` on every backend against convolution and GELU in float64."""

from __future__ import annotations

import harness
import pytest
import torch
from draws import drawn, kernels, layouts, shapes
from harness import DTYPES, LAYOUTS, check_op, in_layout, skip_unsupported

import attnops
from attnops import reference

OP = "depthwise_gelu"
pytestmark = pytest.mark.usefixtures("without_onednn")
CASES = [  # (B, C, H, W), kernel_size
    ((2, 5, 9, 11), 3),
    ((1, 16, 24, 37), 3),
    ((1, 33, 3, 2), 7),
    ((1, 1, 1, 40), 5),
    ((1, 18, 40, 1), (3, 5)),
    ((1, 64, 13, 19), 1),
]
fused, plain = attnops.depthwise_gelu, reference.depthwise_gelu


def operands(device, dtype, shape, kernel_size):
    kernel_size = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    tensors = torch.randn(shape), torch.randn(shape[1], 1, *kernel_size) / 3, torch.randn(shape[1])
    return [t.to(device, dtype) for t in tensors]


@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", ""])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_float64(backend, device, case, dtype, with_bias):
    skip_unsupported(backend, dtype)
    x, *parameters = operands(device, dtype, *case)
    if not with_bias:
        parameters.pop()
    for layout in ("contiguous", "channels_last"):
        inputs = [in_layout(x, layout), *parameters]
        out, grad_x, *_ = check_op(fused, plain, inputs, grad_layout=layout)
        harness.assert_layout(out, layout)
        harness.assert_layout(grad_x, layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("grad_layout", LAYOUTS)
def test_layouts(backend, device, layout, grad_layout):
    x, weight, bias = operands(device, torch.float32, (2, 6, 7, 9), 3)
    inputs = [in_layout(x, layout), weight.mT.contiguous().mT, bias]
    check_op(fused, plain, inputs, grad_layout=grad_layout)


@drawn(40, shape=shapes(2, 70, 40, 40), kernel_size=kernels, layout=layouts)
def test_any_shape(pytestconfig, shape, kernel_size, layout):
    torch.manual_seed(sum(shape))
    device = pytestconfig.getoption("--device")
    x, *rest = operands(device, torch.float32, shape, kernel_size)
    check_op(fused, plain, [in_layout(x, layout), *rest], grad_layout=layout)


def test_threads_do_not_matter(backend, device, threads):
    inputs = operands(device, torch.float32, (2, 9, 30, 33), 3)
    check_op(fused, plain, inputs)
    harness.check_runs_are_bit_equal(fused, inputs)


@pytest.mark.parametrize("scale", [1e-6, 8.0, 1e4], ids=str)
def test_tails_of_the_gelu(backend, device, scale):
    x, weight, bias = operands(device, torch.float32, (1, 4, 12, 20), 1)
    check_op(fused, plain, [x * scale, weight, bias * 0])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_nan_and_infinity_propagate(backend, device, layout):
    x, weight, bias = operands(device, torch.float32, (1, 3, 8, 20), 3)
    weight = weight.abs()  # PyTorch's own GELU of minus infinity is 0 or NaN, as it vectorises
    x[0, 0, 4, 5] = torch.nan
    x[0, 1, 7, 19] = torch.inf
    out = fused(in_layout(x, layout), weight, bias)
    torch.testing.assert_close(out, plain(x, weight, bias), equal_nan=True)


@pytest.mark.parametrize("dims", [(0, 4, 5, 6), (2, 4, 0, 6)], ids=str)
def test_empty(backend, device, dims):
    harness.check_empty(fused, operands(device, torch.float32, dims, 3), dims)


@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", ""])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_opcheck(backend, device, layout, with_bias):
    x, weight, bias = operands(device, torch.float32, (2, 4, 5, 6), 3)
    leaves = [t.requires_grad_() for t in (in_layout(x, layout), weight, bias)]
    arguments = (*leaves[:2], leaves[2] if with_bias else None)
    torch.library.opcheck(torch.ops.attnops.depthwise_gelu.default, arguments)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradcheck(backend, device, layout):
    skip_unsupported(backend, torch.float64)
    x, *rest = operands(device, torch.float64, (1, 2, 4, 5), 3)
    leaves = [t.requires_grad_() for t in (in_layout(x, layout), *rest)]
    assert torch.autograd.gradcheck(fused, leaves)


@pytest.mark.inductor
def test_compiles_whole_with_dynamic_shapes(backend, device):
    x, *parameters = operands(device, torch.float32, (2, 5, 7, 9), 3)
    second = in_layout(torch.randn(3, 5, 12, 8, device=device), "channels_last")
    harness.check_compiles(fused, plain, [[x, *parameters], [second, *parameters]])


def test_exports_with_dynamic_shapes(backend, device):
    x, *parameters = operands(device, torch.float32, (2, 5, 7, 9), 3)
    harness.check_exports(
        fused, plain, (x, *parameters), (torch.randn(2, 5, 20, 11, device=device), *parameters)
    )


def test_autocast_computes_in_the_autocast_dtype(backend, device):
    harness.check_autocast(fused, operands(device, torch.float32, (1, 8, 6, 7), 3), backend)


@harness.bad_input(
    ({"x": None}, TypeError, "x must be a tensor, got NoneType"),
    ({"weight": torch.ones(4, 1, 3, 3).int()}, TypeError, "weight has dtype torch.int32"),
    ({"bias": torch.ones(4).half()}, ValueError, "but bias is torch.float16"),
    ({"bias": torch.ones(3)}, ValueError, r"bias must be \[4\], got \[3\]"),
    ({"x": torch.ones(4, 5, 6)}, ValueError, r"x must be \[B, C, H, W\]"),
    ({"weight": torch.ones(5, 1, 3, 3)}, ValueError, r"weight must be \[4, 1, kh, kw\]"),
    ({"weight": torch.ones(4, 1, 2, 3)}, ValueError, "weight must have odd sides.*2x3"),
)
def test_bad_input(change, error, message):
    arguments = {"x": torch.ones(2, 4, 5, 6), "weight": torch.ones(4, 1, 3, 3)}
    with pytest.raises(error, match=message):
        attnops.depthwise_gelu(**(arguments | change))
