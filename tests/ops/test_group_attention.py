"""`group_attention` on every backend against plain sums in float64."""

from __future__ import annotations

import harness
import pytest
import torch
from draws import drawn, integers, layouts, shapes
from harness import DTYPES, LAYOUTS, check_op, in_layout, skip_unsupported

import attnops
from attnops import reference

OP = "group_attention"
CASES = [  # (B, P, H, W), groups
    ((2, 8, 5, 7), 4),
    ((1, 16, 9, 31), 1),
    ((3, 6, 1, 1), 6),
    ((1, 30, 3, 17), 2),
    ((1, 48, 12, 13), 6),
    ((2, 1, 13, 1), 1),
]


def operands(device, dtype, *shape):
    return [torch.randn(shape, device=device).to(dtype) for _ in range(3)]


def fused(groups):
    return lambda theta, phi, g: attnops.group_attention(theta, phi, g, groups)


def plain(groups):
    return lambda theta, phi, g: reference.group_attention(theta, phi, g, groups)


def as_released(theta, phi, g, groups):
    """The published block's arithmetic (GALD, SpatialCGNL): a product of flattened groups."""
    out = []
    for t, p, v in zip(*(x.chunk(groups, dim=1) for x in (theta, phi, g)), strict=True):
        batch, channels, height, width = t.shape
        t, p, v = (x.reshape(batch, 1, -1) for x in (t, p, v))
        affinity = torch.bmm(p, v.mT)
        out.append(torch.bmm(affinity, t).view(batch, channels, height, width))
    return torch.cat(out, dim=1)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_reference_is_the_published_block(case):
    shape, groups = case
    inputs = operands("cpu", torch.float64, *shape)
    found = reference.group_attention(*inputs, groups)
    torch.testing.assert_close(found, as_released(*inputs, groups))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_float64(backend, device, case, dtype):
    skip_unsupported(backend, dtype)
    shape, groups = case
    inputs = [x / 4 for x in operands(device, dtype, *shape)]
    for layout in ("contiguous", "channels_last"):
        arranged = [in_layout(x, layout) for x in inputs]
        found = check_op(fused(groups), plain(groups), arranged, grad_layout=layout)
        for x in found:
            harness.assert_layout(x, layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("grad_layout", LAYOUTS)
def test_layouts(backend, device, layout, grad_layout):
    theta, phi, g = operands(device, torch.float32, 2, 6, 7, 9)
    inputs = [in_layout(theta, layout), in_layout(phi, "channels_last"), in_layout(g, "expanded")]
    check_op(fused(3), plain(3), inputs, grad_layout=grad_layout)


@drawn(
    40,
    batch=integers(1, 3),
    groups=integers(1, 9),
    width=integers(1, 9),
    size=shapes(40, 40),
    layout=layouts,
)
def test_any_shape(pytestconfig, batch, groups, width, size, layout):
    torch.manual_seed(groups)
    device = pytestconfig.getoption("--device")
    inputs = operands(device, torch.float32, batch, groups * width, *size)
    arranged = [in_layout(x, layout) for x in inputs]
    check_op(fused(groups), plain(groups), arranged, grad_layout=layout)


@pytest.mark.parametrize("shape", [(1, 32, 128, 136), (1, 6, 301, 307)], ids=str)
def test_maps_beyond_the_caches(backend, device, shape):
    """The C++ code stores such gradients past the caches, where their rows are aligned."""
    if backend != "cpu":
        pytest.skip("the same as smaller maps")
    for layout in ("contiguous", "channels_last"):
        inputs = [in_layout(x, layout) for x in operands(device, torch.float32, *shape)]
        check_op(fused(2), plain(2), inputs, grad_layout=layout)


def test_threads_do_not_matter(backend, device, threads):
    inputs = operands(device, torch.float32, 2, 24, 33, 40)
    check_op(fused(8), plain(8), inputs)
    harness.check_runs_are_bit_equal(fused(8), inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_sums_are_accumulated_in_float32(backend, device, dtype):
    """In half precision a running sum of ones stops growing at 2048 (256 in bfloat16)."""
    ones = torch.ones(1, 4, 60, 50, device=device, dtype=dtype)
    out = attnops.group_attention(ones / 64, ones, ones, 1)
    expected = torch.full_like(ones, 4 * 3000 / 64)
    torch.testing.assert_close(out, expected, rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_nan_and_infinity_propagate_to_the_group_alone(backend, device, layout):
    theta, phi, g = operands(device, torch.float32, 2, 6, 5, 7)
    phi[0, 3, 2, 3] = torch.nan
    g[1, 0, 4, 4] = torch.inf
    theta[1, 5, 0, 0] = torch.nan
    arranged = [in_layout(x, layout) for x in (theta, phi, g)]
    found = attnops.group_attention(*arranged, 3)
    torch.testing.assert_close(found, plain(3)(theta, phi, g), equal_nan=True)
    assert found[0, :2].isfinite().all()


@pytest.mark.parametrize("dims", [(0, 4, 5, 6), (2, 4, 0, 6)], ids=str)
def test_empty(backend, device, dims):
    harness.check_empty(fused(2), operands(device, torch.float32, *dims), dims)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_opcheck(backend, device, layout):
    inputs = operands(device, torch.float32, 2, 4, 5, 6)
    leaves = [in_layout(x, layout).requires_grad_() for x in inputs]
    torch.library.opcheck(torch.ops.attnops.group_attention.default, (*leaves, 2))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradcheck(backend, device, layout):
    skip_unsupported(backend, torch.float64)
    inputs = operands(device, torch.float64, 1, 4, 3, 2)
    leaves = [in_layout(x, layout).requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(fused(2), leaves)


@pytest.mark.inductor
def test_compiles_whole_with_dynamic_shapes(backend, device):
    second = operands(device, torch.float32, 3, 8, 12, 9)
    draws = [
        operands(device, torch.float32, 2, 4, 7, 9),
        [in_layout(x, "channels_last") for x in second],
    ]
    harness.check_compiles(fused(2), plain(2), draws)


def test_exports_with_dynamic_shapes(backend, device):
    harness.check_exports(
        fused(2),
        plain(2),
        tuple(operands(device, torch.float32, 2, 4, 7, 9)),
        tuple(operands(device, torch.float32, 2, 4, 20, 11)),
        (harness.DYNAMIC_SIDES,) * 3,
    )


def test_autocast_computes_in_the_autocast_dtype(backend, device):
    harness.check_autocast(fused(2), operands(device, torch.float32, 1, 8, 5, 7), backend)


@harness.bad_input(
    ({"theta": None}, TypeError, "theta must be a tensor, got NoneType"),
    ({"phi": torch.ones(2, 4, 5, 6).int()}, TypeError, "phi has dtype torch.int32"),
    ({"g": torch.ones(2, 4, 5, 6).half()}, ValueError, "but g is torch.float16"),
    ({"phi": torch.ones(2, 4, 5, 5)}, ValueError, r"phi must be \[2, 4, 5, 6\]"),
    ({"theta": torch.ones(2, 4, 5)}, ValueError, r"theta must be \[B, P, H, W\]"),
    ({"groups": 3}, ValueError, "groups must divide the 4 channels of theta, got 3"),
    ({"groups": 0}, ValueError, "groups must divide"),
    ({"groups": None}, TypeError, "groups must be an integer, got None"),
)
def test_bad_input(change, error, message):
    arguments = dict.fromkeys(("theta", "phi", "g"), torch.ones(2, 4, 5, 6)) | {"groups": 2}
    with pytest.raises(error, match=message):
        attnops.group_attention(**(arguments | change))
