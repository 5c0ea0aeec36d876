"""`local_attention` on every backend against shifted maps in float64, and those against unfold."""

from __future__ import annotations

import harness
import pytest
import torch
from draws import drawn, kernels, layouts, one_of, shapes
from harness import DTYPES, LAYOUTS, check_op, in_layout, skip_unsupported
from torch.nn.functional import unfold

import attnops
from attnops import reference

OP = "local_attention"
BORDERS = ("zero", "mask")
CASES = [  # (B, Ck, Cv, H, W), kernel_size, dilation
    ((2, 5, 7, 9, 11), 3, 1),
    ((1, 16, 16, 13, 29), 5, 3),  # several tiles, some windows inside the map
    ((1, 3, 9, 6, 5), 7, 6),  # the window is larger than the map
    ((2, 4, 4, 8, 10), 1, 1),
    ((1, 33, 1, 7, 18), (3, 7), (2, 1)),
    ((1, 1, 6, 13, 1), 5, 2),
    ((1, 6, 5, 1, 70), 5, 4),
    ((1, 17, 20, 3, 3), 7, 1),
    ((1, 8, 8, 12, 16), (5, 1), (1, 6)),
    ((2, 70, 130, 9, 5), 5, 2),
    ((1, 129, 67, 6, 8), (7, 3), 1),
]


def operands(device, dtype, batch, key_channels, value_channels, height, width):
    channels = (key_channels, key_channels, value_channels)
    return [torch.randn(batch, c, height, width, device=device).to(dtype) for c in channels]


def fused(*options, **named):
    return lambda q, k, v: attnops.local_attention(q, k, v, *options, **named)


def plain(*options, **named):
    return lambda q, k, v: reference.local_attention(q, k, v, *options, **named)


def by_unfold(query, key, value, kernel_size, dilation, scale, border):
    """GALD's equations with unfold: an independent formulation of the definition."""
    kernel_size, dilation = ((p, p) if isinstance(p, int) else p for p in (kernel_size, dilation))
    padding = [d * (k // 2) for k, d in zip(kernel_size, dilation, strict=True)]
    batch, _, height, width = query.shape
    count = kernel_size[0] * kernel_size[1]

    def windows(x):
        columns = unfold(x, kernel_size, dilation, padding)
        return columns.view(batch, x.shape[1], count, height, width)

    scores = scale * torch.einsum("bchw,bcnhw->bnhw", query, windows(key))
    if border == "mask":
        inside = windows(torch.ones_like(query[:, :1])).squeeze(1)
        scores = scores.masked_fill(inside == 0, -torch.inf)
    return torch.einsum("bnhw,bcnhw->bchw", scores.softmax(1), windows(value))


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_reference_is_the_published_attention(case, border):
    shape, kernel_size, dilation = case
    inputs = operands("cpu", torch.float64, *shape)
    found = reference.local_attention(*inputs, kernel_size, dilation, 0.6, border)
    wanted = by_unfold(*inputs, kernel_size, dilation, 0.6, border)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_float64(backend, device, case, dtype, border):
    skip_unsupported(backend, dtype)
    shape, kernel_size, dilation = case
    options = (kernel_size, dilation, shape[1] ** -0.5, border)
    inputs = operands(device, dtype, *shape)
    for layout in ("contiguous", "channels_last"):
        arranged = [in_layout(x, layout) for x in inputs]
        found = check_op(fused(*options), plain(*options), arranged, grad_layout=layout)
        if shape[1] > 1:
            for x in found:
                harness.assert_layout(x, layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("grad_layout", LAYOUTS)
def test_layouts(backend, device, layout, grad_layout):
    query, key, value = operands(device, torch.float32, 2, 6, 5, 7, 9)
    inputs = [in_layout(query, layout), key.mT.contiguous().mT, in_layout(value, "expanded")]
    check_op(fused(3, 2), plain(3, 2), inputs, grad_layout=grad_layout)


@drawn(
    40,
    shape=shapes(2, 40, 40, 12, 40),
    kernel_size=kernels,
    dilation=shapes(6, 6),
    border=one_of(BORDERS),
    layout=layouts,
    scale=one_of([0.0, 0.2, -0.5]),
)
def test_any_shape(pytestconfig, shape, kernel_size, dilation, border, layout, scale):
    torch.manual_seed(sum(shape))
    device = pytestconfig.getoption("--device")
    inputs = [in_layout(x, layout) for x in operands(device, torch.float32, *shape)]
    options = (kernel_size, dilation, scale, border)
    check_op(fused(*options), plain(*options), inputs, grad_layout=layout)


def test_threads_do_not_matter(backend, device, threads):
    shape = (2, 20, 18, 33, 35) if backend == "cpu" else (2, 4, 3, 13, 15)  # others: no threads
    inputs = operands(device, torch.float32, *shape)
    check_op(fused(5, 3, 0.2), plain(5, 3, 0.2), inputs)
    harness.check_runs_are_bit_equal(fused(5, 3, 0.2), inputs)


@pytest.mark.parametrize("border", BORDERS)
def test_large_scores_do_not_overflow(backend, device, border):
    # Many positions: few of them have scores so close that rounding shows.
    query, key, value = operands(device, torch.float32, 1, 8, 4, 16, 18)
    options = (3, 2, 1.0, border)
    check_op(fused(*options), plain(*options), [query * 40, key * 40, value])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("border", BORDERS)
def test_nan_and_infinity_propagate_to_the_window_alone(backend, device, border, layout):
    query, key, value = operands(device, torch.float32, 2, 4, 3, 9, 21)
    query[0, 1, 2, 3] = torch.nan
    key[0, 2, 7, 12] = torch.nan
    key[1, 0, 0, 0] = torch.inf
    value[1, 0, 5, 6] = torch.nan
    value[1, 2, 1, 20] = torch.inf
    inputs = [in_layout(x, layout) for x in (query, key, value)]
    out = attnops.local_attention(*inputs, 3, 2, border=border)
    expected = reference.local_attention(query, key, value, 3, 2, border=border)
    torch.testing.assert_close(out, expected, equal_nan=True)


@pytest.mark.parametrize("border", BORDERS)
def test_constant_scores_average_the_window(backend, device, border):
    """A hand-made answer at a corner: zero padding counts the neighbours outside, masking does
    not.
    """
    value = torch.rand(1, 1, 6, 7, device=device)
    query = torch.zeros(1, 2, 6, 7, device=device)
    out = attnops.local_attention(query, query, value, 3, 2, border=border)
    corner = value[0, 0, :3:2, :3:2].sum() / (9 if border == "zero" else 4)
    torch.testing.assert_close(out[0, 0, 0, 0], corner)


@pytest.mark.parametrize("dims", [(0, 4, 3, 5, 6), (2, 4, 3, 0, 6)], ids=str)
def test_empty(backend, device, dims):
    harness.check_empty(fused(), operands(device, torch.float32, *dims), (dims[0], 3, *dims[3:]))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_opcheck(backend, device, layout):
    leaves = [
        in_layout(x, layout).requires_grad_()
        for x in operands(device, torch.float32, 2, 4, 3, 5, 6)
    ]
    arguments = (*leaves, [3, 5], [2, 1], 0.5, True)
    torch.library.opcheck(torch.ops.attnops.local_attention.default, arguments)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradcheck(backend, device, layout, border):
    skip_unsupported(backend, torch.float64)
    inputs = operands(device, torch.float64, 1, 3, 2, 4, 3)
    leaves = [in_layout(x, layout).requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(fused(3, (1, 2), 0.8, border), leaves)


@pytest.mark.inductor
def test_compiles_whole_with_dynamic_shapes(backend, device):
    draws = [
        operands(device, torch.float32, 2, 5, 4, 7, 9),
        [in_layout(x, "channels_last") for x in operands(device, torch.float32, 3, 6, 8, 12, 8)],
    ]
    harness.check_compiles(fused(3, 2, 0.4), plain(3, 2, 0.4), draws)


def test_exports_with_dynamic_shapes(backend, device):
    harness.check_exports(
        fused(3, 2),
        plain(3, 2),
        tuple(operands(device, torch.float32, 2, 5, 4, 7, 9)),
        tuple(operands(device, torch.float32, 2, 5, 4, 20, 11)),
        (harness.DYNAMIC_SIDES,) * 3,
    )


def test_autocast_computes_in_the_autocast_dtype(backend, device):
    harness.check_autocast(fused(3), operands(device, torch.float32, 1, 8, 6, 5, 7), backend)


def test_double_backward_is_refused(backend, device):
    harness.check_refuses_double_backward(fused(3), operands(device, torch.float32, 1, 2, 2, 4, 4))


@harness.bad_input(
    ({"query": None}, TypeError, "query must be a tensor, got NoneType"),
    ({"key": torch.ones(2, 4, 5, 6).int()}, TypeError, "key has dtype torch.int32"),
    ({"value": torch.ones(2, 3, 5, 6).half()}, ValueError, "but value is torch.float16"),
    ({"query": torch.ones(2, 4, 5)}, ValueError, r"query must be \[B, Ck, H, W\]"),
    ({"key": torch.ones(2, 3, 5, 6)}, ValueError, r"key must be \[2, 4, 5, 6\]"),
    ({"value": torch.ones(2, 3, 5, 5)}, ValueError, r"value must be \[2, Cv, 5, 6\]"),
    ({"value": torch.ones(2, 0, 5, 6)}, ValueError, "at least one channel"),
    ({"kernel_size": 4}, ValueError, "odd and positive.*got 4"),
    ({"kernel_size": (3, -1)}, ValueError, "odd and positive"),
    ({"kernel_size": 3.0}, TypeError, "integer or a pair of integers, got 3.0"),
    ({"dilation": 0}, ValueError, "dilation must be at least 1, got 0"),
    ({"dilation": (1, 2, 3)}, TypeError, "dilation must be an integer or a pair"),
    ({"scale": None}, TypeError, "scale must be a number, got None"),
    ({"border": "reflect"}, ValueError, "border must be 'zero' or 'mask', got 'reflect'"),
    ({"key": torch.ones(2, 4, 5, 6, device="meta")}, ValueError, "expected one device"),
)
def test_bad_input(change, error, message):
    query, key, value = operands("cpu", torch.float32, 2, 4, 3, 5, 6)
    arguments = {"query": query, "key": key, "value": value} | change
    with pytest.raises(error, match=message):
        attnops.local_attention(**arguments)
