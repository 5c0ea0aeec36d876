"""`strip_conv` on every backend against separate convolutions in float64."""

from __future__ import annotations

import harness
import pytest
import torch
from draws import drawn, kernels, layouts, lists, one_of, shapes
from harness import DTYPES, LAYOUTS, check_op, in_layout, skip_unsupported

import attnops
from attnops import reference

OP = "strip_conv"
pytestmark = pytest.mark.usefixtures("without_onednn")
CASES = [  # (B, C, H, W), kernel_size, strips
    ((2, 5, 9, 11), 5, (7, 11, 21)),  # maps smaller than most kernels
    ((1, 16, 14, 37), 5, (7, 11)),  # several tiles and partial sums
    ((1, 33, 3, 2), 7, (31, 3)),
    ((2, 3, 12, 10), 3, ()),
    ((1, 1, 1, 40), 5, (3,)),
    ((1, 7, 40, 1), (3, 5), (1, 9)),
    ((1, 18, 33, 20), (1, 1), ((5, 9), (15, 3))),  # rows and columns of different lengths
]


def operands(device, dtype, shape, kernel_size, strips):
    """x, then weights and biases in the order of `arranged`."""
    channels = shape[1]
    kernel_size = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    sides = [kernel_size]
    for k in strips:
        row, column = (k, k) if isinstance(k, int) else k
        sides += [(1, row), (column, 1)]
    out = [torch.randn(shape)]
    for h, w in sides:
        out += [torch.randn(channels, 1, h, w) / (h * w) ** 0.5, torch.randn(channels)]
    return [t.to(device, dtype) for t in out]


def arranged(parameters, with_bias=True):
    pairs = list(zip(parameters[0::2], parameters[1::2], strict=True))
    if not with_bias:
        pairs = [(w, None) for w, _ in pairs]
    return *pairs[0], list(zip(pairs[1::2], pairs[2::2], strict=True))


def fused(x, *parameters):
    return attnops.strip_conv(x, *arranged(parameters))


def plain(x, *parameters):
    return reference.strip_conv(x, *arranged(parameters))


def without_bias(function):
    def call(x, *weights):
        parameters = [t for w in weights for t in (w, None)]
        return function(x, *arranged(parameters, with_bias=False))

    return call


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_float64(backend, device, case, dtype):
    skip_unsupported(backend, dtype)
    x, *parameters = operands(device, dtype, *case)
    for layout in ("contiguous", "channels_last"):
        inputs = [in_layout(x, layout), *parameters]
        out, grad_x, *_ = check_op(fused, plain, inputs, grad_layout=layout)
        harness.assert_layout(out, layout)
        harness.assert_layout(grad_x, layout)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_without_biases(backend, device, case):
    x, *parameters = operands(device, torch.float32, *case)
    for layout in ("contiguous", "channels_last"):
        inputs = [in_layout(x, layout), *parameters[0::2]]
        check_op(without_bias(attnops.strip_conv), without_bias(reference.strip_conv), inputs)


def test_some_biases(backend, device):
    """Biases reach the border: the vertical pass sees zeros outside the map, not biases."""
    shape = (1, 4, 6, 7)
    x, *parameters = operands(device, torch.float32, shape, 3, (5, 3))
    parameters[1] = parameters[5] = None
    given = [x, *(p for p in parameters if p is not None)]

    def fill(function):
        def call(x, *given):
            rest = iter(given)
            return function(x, *arranged([None if p is None else next(rest) for p in parameters]))

        return call

    check_op(fill(attnops.strip_conv), fill(reference.strip_conv), given)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("grad_layout", LAYOUTS)
def test_layouts(backend, device, layout, grad_layout):
    x, *parameters = operands(device, torch.float32, (2, 6, 7, 9), 3, (5, 7))
    inputs = [in_layout(x, layout), *parameters]
    inputs[1] = inputs[1].permute(3, 1, 2, 0).contiguous().permute(3, 1, 2, 0)
    inputs[3] = torch.stack([inputs[3], torch.full_like(inputs[3], torch.nan)], dim=-1)[..., 0]
    inputs[4] = inputs[4][:1].expand_as(inputs[4])
    assert not any(inputs[i].is_contiguous() for i in (1, 3, 4))
    check_op(fused, plain, inputs, grad_layout=grad_layout)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_several_tiles(backend, device, layout, monkeypatch):
    """Runs of rows that strips cross, and columns of several tiles, as a GPU has them."""
    if backend == "triton":
        monkeypatch.setattr("attnops.kernels.strip_conv.plan.FOR_THREADS", True)
        monkeypatch.setattr("attnops.kernels.strip_conv.plan.ROWS", (8,))
    shape = (1, 2, 19, 34 if layout == "contiguous" else 10)
    x, *rest = operands(device, torch.float32, shape, (3, 5), ((3, 5), (7, 3)))
    check_op(fused, plain, [in_layout(x, layout), *rest], grad_layout=layout)


@drawn(
    40,
    shape=shapes(2, 40, 36, 36),
    kernel_size=kernels,
    strips=lists(one_of([1, 3, 7, 11, 21, 31]), 0, 3),
    layout=layouts,
)
def test_any_shape(pytestconfig, shape, kernel_size, strips, layout):
    torch.manual_seed(sum(shape))
    device = pytestconfig.getoption("--device")
    x, *rest = operands(device, torch.float32, shape, kernel_size, strips)
    check_op(fused, plain, [in_layout(x, layout), *rest], grad_layout=layout)


def test_threads_do_not_matter(backend, device, threads):
    inputs = operands(device, torch.float32, (2, 9, 30, 33), 5, (7, 11))
    check_op(fused, plain, inputs)
    harness.check_runs_are_bit_equal(fused, inputs)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_nan_and_infinity_propagate_to_the_cross_alone(backend, device, layout):
    x, *parameters = operands(device, torch.float32, (1, 3, 20, 30), 3, (5,))
    x[0, 0, 4, 5] = torch.nan
    x[0, 1, 19, 29] = torch.inf
    out = fused(in_layout(x, layout), *parameters)
    expected = plain(x, *parameters)
    assert torch.equal(out.isfinite(), expected.isfinite())
    torch.testing.assert_close(out[0, 2], expected[0, 2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dims", [(0, 4, 5, 6), (2, 4, 0, 6)], ids=str)
def test_empty(backend, device, dims):
    harness.check_empty(fused, operands(device, torch.float32, dims, 3, (5,)), dims)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_opcheck(backend, device, layout):
    x = in_layout(torch.randn(2, 4, 5, 6, device=device), layout).requires_grad_()
    _, *parameters = operands(device, torch.float32, x.shape, 3, ((5, 7),))
    weights, biases = ([p.requires_grad_() for p in parameters[k::2]] for k in (0, 1))
    for biased in ([0, 1, 2], [2], []):
        arguments = (x, weights, [biases[i] for i in biased], biased)
        torch.library.opcheck(torch.ops.attnops.strip_conv.default, arguments)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradcheck(backend, device, layout):
    skip_unsupported(backend, torch.float64)
    x, *rest = operands(device, torch.float64, (1, 2, 4, 5), 3, (5,))
    leaves = [t.requires_grad_() for t in (in_layout(x, layout), *rest)]
    assert torch.autograd.gradcheck(fused, leaves)


@pytest.mark.inductor
def test_compiles_whole_with_dynamic_shapes(backend, device):
    x, *parameters = operands(device, torch.float32, (2, 5, 7, 9), 3, (5,))
    second = in_layout(torch.randn(3, 5, 12, 8, device=device), "channels_last")
    harness.check_compiles(fused, plain, [[x, *parameters], [second, *parameters]])


def test_exports_with_dynamic_shapes(backend, device):
    x, *parameters = operands(device, torch.float32, (2, 5, 7, 9), 3, (5,))
    harness.check_exports(
        fused, plain, (x, *parameters), (torch.randn(2, 5, 20, 11, device=device), *parameters)
    )


def test_autocast_computes_in_the_autocast_dtype(backend, device):
    inputs = operands(device, torch.float32, (1, 8, 6, 7), 3, (5,))
    harness.check_autocast(fused, inputs, backend)


def test_double_backward_is_refused(backend, device):
    harness.check_refuses_double_backward(
        fused, operands(device, torch.float32, (1, 2, 4, 4), 3, (3,))
    )


ROW, COLUMN = torch.ones(4, 1, 1, 3), torch.ones(4, 1, 3, 1)


@harness.bad_input(
    ({"x": None}, TypeError, "x must be a tensor, got NoneType"),
    ({"weight": torch.ones(4, 1, 3, 3).int()}, TypeError, "weight has dtype torch.int32"),
    ({"bias": torch.ones(4).half()}, ValueError, "but bias is torch.float16"),
    ({"bias": torch.ones(3)}, ValueError, r"bias must be \[4\], got \[3\]"),
    ({"x": torch.ones(4, 5, 6)}, ValueError, r"x must be \[B, C, H, W\]"),
    ({"weight": torch.ones(4, 4, 3, 3)}, ValueError, r"weight must be \[4, 1, kh, kw\]"),
    ({"weight": torch.ones(4, 1, 2, 3)}, ValueError, "weight must have odd sides.*2x3"),
    ({"strips": [((COLUMN, None), (COLUMN, None))]}, ValueError, r"\[4, 1, 1, kw\]"),
    ({"strips": [((ROW, None), (ROW, None))]}, ValueError, r"\[4, 1, kh, 1\]"),
    (
        {"strips": [((ROW, torch.ones(5)), (COLUMN, None))]},
        ValueError,
        r"strips\[0\].bias\[h\]",
    ),
    ({"strips": [(ROW, COLUMN)]}, TypeError, "strips must be a sequence of"),
    ({"strips": 3}, TypeError, "strips must be a sequence of"),
)
def test_bad_input(change, error, message):
    arguments = {
        "x": torch.ones(2, 4, 5, 6),
        "weight": torch.ones(4, 1, 3, 3),
        "bias": None,
        "strips": [((ROW, None), (COLUMN, None))],
    }
    with pytest.raises(error, match=message):
        attnops.strip_conv(**(arguments | change))
