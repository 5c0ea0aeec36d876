"""`anchor_attention` on every backend against plain attention in float64."""

from __future__ import annotations

import harness
import pytest
import torch
from draws import drawn, integers, layouts, one_of, shapes
from harness import DTYPES, LAYOUTS, check_op, has_float64, in_layout, skip_unsupported

import attnops
from attnops import reference

OP = "anchor_attention"
CUDA_ANCHORS = 112  # of the kernels of CUDA C++
SHAPES = [  # B, Ck, Cv, H, W, S
    (2, 5, 7, 6, 9, 11),
    (1, 32, 32, 12, 11, 110),
    (2, 3, 1, 1, 17, 1),
    (1, 1, 40, 23, 1, 50),
    (1, 17, 9, 1, 1, 33),
    (1, 64, 130, 7, 37, 110),
    (1, 130, 16, 13, 10, 257),
    (1, 8, 8, 5, 5, 512),
]


def operands(device, dtype, batch, key_channels, value_channels, *spatial, anchors):
    def randn(*shape):
        return torch.randn(shape, device=device).to(dtype)

    return (
        randn(batch, key_channels, *spatial),
        randn(batch, key_channels, anchors),
        randn(batch, value_channels, anchors),
        randn(batch, anchors),
    )


def fused(scale):
    return lambda q, k, v, b=None: attnops.anchor_attention(q, k, v, scale, bias=b)


def plain(scale):
    return lambda q, k, v, b=None: reference.anchor_attention(q, k, v, scale, bias=b)


@pytest.mark.parametrize("with_bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_float64(backend, device, shape, dtype, with_bias):
    skip_unsupported(backend, dtype, OP)
    *dims, anchors = shape
    if backend == "cuda" and anchors > CUDA_ANCHORS:
        pytest.skip("the scores of so many anchors do not fit a warp's registers")
    query, *rest = operands(device, dtype, *dims, anchors=anchors)
    if not with_bias:
        rest.pop()
    for layout in ("contiguous", "channels_last"):
        inputs = [in_layout(query, layout), *rest]
        out, grad, *_ = check_op(fused(None), plain(None), inputs, grad_layout=layout)
        memory_format = (
            torch.channels_last if layout == "channels_last" else torch.contiguous_format
        )
        assert out.shape == (dims[0], dims[2], *dims[3:])
        if dims[1] > 1:  # one channel is both layouts at once
            assert out.is_contiguous(memory_format=memory_format)
            assert grad.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("grad_layout", LAYOUTS)
def test_layouts(backend, device, layout, grad_layout):
    query, key, value, bias = operands(device, torch.float32, 2, 6, 5, 7, 9, anchors=13)
    key = key.transpose(1, 2).contiguous().transpose(1, 2)
    value = value[:, :, :1].expand_as(value)
    inputs = [in_layout(query, layout), key, value, bias]
    check_op(fused(0.7), plain(0.7), inputs, grad_layout=grad_layout)


@pytest.mark.parametrize("spatial", [(35,), (3, 4, 5), (2, 3, 2, 3)], ids=str)
def test_any_number_of_spatial_axes(backend, device, threads, spatial):
    inputs = operands(device, torch.float32, 2, 6, 5, *spatial, anchors=13)
    out, *_ = check_op(fused(None), plain(None), inputs)
    assert out.shape == (2, 5, *spatial)


def test_tokens_with_channels_innermost(backend, device):
    query, *rest = operands(device, torch.float32, 2, 6, 5, 35, anchors=13)
    query = query.transpose(1, 2).contiguous().transpose(1, 2)
    out, *_ = check_op(fused(None), plain(None), [query, *rest])
    assert out.transpose(1, 2).is_contiguous()


@drawn(
    60,
    shape=shapes(3, 70, 70, 300),
    anchors=integers(1, 130),
    layout=layouts,
    scale=one_of([None, 0.0, 1.0, -0.5]),
)
def test_any_shape(pytestconfig, shape, anchors, layout, scale):
    torch.manual_seed(sum(shape))
    device = pytestconfig.getoption("--device")
    query, *rest = operands(device, torch.float32, *shape, 1, anchors=anchors)
    inputs = [in_layout(query, layout), *rest]
    check_op(fused(scale), plain(scale), inputs, grad_layout=layout)


def test_large_scores_do_not_overflow(backend, device):
    query, key, value, _ = operands(device, torch.float32, 1, 8, 4, 5, 6, anchors=20)
    check_op(fused(1.0), plain(1.0), [query * 40, key * 40, value])


def test_nan_and_infinity_propagate(backend, device):
    query, key, value, _ = operands(device, torch.float32, 2, 4, 3, 5, 7, anchors=9)
    query[0, 1, 2, 3] = torch.nan
    query[0, 2, 4, 4] = torch.inf
    value[1, 0, 5] = torch.nan
    value[1, 2, 1] = torch.inf
    for layout in ("contiguous", "channels_last"):
        out = attnops.anchor_attention(in_layout(query, layout), key, value)
        expected = reference.anchor_attention(query, key, value)
        if backend == "cuda":  # documented: its products of float32 make NaN of infinity
            expected = expected.where(expected.isfinite(), torch.nan)
        torch.testing.assert_close(out, expected, equal_nan=True)
    key[1, 0, 3] = torch.nan
    out = attnops.anchor_attention(query, key, value)
    assert out[1].isnan().all()


def test_masked_anchors(backend, device):
    query, key, value, bias = operands(device, torch.float32, 2, 4, 3, 5, 7, anchors=9)
    bias[0, 4:] = -torch.inf
    out = attnops.anchor_attention(query, key, value, bias=bias)
    kept = attnops.anchor_attention(query[:1], key[:1, :, :4], value[:1, :, :4], bias=bias[:1, :4])
    torch.testing.assert_close(out[:1], kept)
    bias[1] = -torch.inf
    assert attnops.anchor_attention(query, key, value, bias=bias)[1].isnan().all()


def test_runs_are_bit_equal(backend, device, threads):
    inputs = operands(device, torch.float32, 2, 40, 33, 31, 33, anchors=110)
    leaves = [x.requires_grad_() for x in inputs]
    grad = torch.randn(2, 33, 31, 33, device=device)

    def once():
        out = fused(None)(*leaves)
        return out, *torch.autograd.grad(out, leaves, grad)

    for first, second in zip(once(), once(), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("dims", [(0, 4, 3, 5, 6), (2, 4, 3, 0, 6)], ids=str)
def test_empty(backend, device, dims):
    leaves = [x.requires_grad_() for x in operands(device, torch.float32, *dims, anchors=7)]
    out = fused(None)(*leaves)
    assert out.shape == (dims[0], 3, *dims[3:])
    out.sum().backward()
    for leaf in leaves:
        assert torch.equal(leaf.grad, torch.zeros_like(leaf))


@pytest.mark.parametrize("with_bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("inner", [False, True], ids=["contiguous", "channels_inner"])
def test_opcheck(backend, device, inner, with_bias):
    query, key, value, bias = operands(device, torch.float32, 2, 4, 3, 10, anchors=6)
    if inner:
        query = query.transpose(1, 2).contiguous().transpose(1, 2)
    leaves = [x.requires_grad_() for x in (query, key, value)]
    leaves.append(bias.requires_grad_() if with_bias else None)
    torch.library.opcheck(torch.ops.attnops.anchor_attention.default, (*leaves, 0.5))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradcheck(backend, device, layout):
    skip_unsupported(backend, torch.float64, OP)
    query, *rest = operands(device, torch.float64, 2, 4, 3, 3, 4, anchors=5)
    leaves = [x.requires_grad_() for x in (in_layout(query, layout), *rest)]
    assert torch.autograd.gradcheck(fused(0.8), leaves)


@pytest.mark.inductor
def test_compiles_whole_with_dynamic_shapes(backend, device):
    compiled = torch.compile(
        lambda q, k, v: attnops.anchor_attention(q * 2, k, v).relu(), fullgraph=True, dynamic=True
    )
    for dims, anchors, layout in [
        ((2, 5, 4, 7, 9), 12, "contiguous"),
        ((3, 6, 8, 12, 8), 20, "channels_last"),
    ]:
        query, key, value, _ = operands(device, torch.float32, *dims, anchors=anchors)
        leaves = [x.requires_grad_() for x in (in_layout(query, layout), key, value)]
        out = compiled(*leaves)
        expected = reference.anchor_attention(leaves[0] * 2, *leaves[1:]).relu()
        torch.testing.assert_close(out, expected)
        grad = torch.randn_like(out)
        found, wanted = (torch.autograd.grad(y, leaves, grad) for y in (out, expected))
        torch.testing.assert_close(found, wanted)


def test_exports_with_dynamic_shapes(backend, device):
    class Attend(torch.nn.Module):
        def forward(self, query, key, value):
            return attnops.anchor_attention(query, key, value)

    query, key, value, _ = operands(device, torch.float32, 2, 5, 4, 7, 9, anchors=12)
    program = torch.export.export(
        Attend(), (query, key, value), dynamic_shapes=(harness.DYNAMIC_SIDES, None, None)
    )
    query = torch.randn(2, 5, 20, 31, device=device)
    expected = reference.anchor_attention(query, key, value)
    torch.testing.assert_close(program.module()(query, key, value), expected)


def test_autocast_computes_in_the_autocast_dtype(backend, device):
    query, key, value, _ = operands(device, torch.float32, 1, 8, 6, 5, 7, anchors=12)
    leaf = query.requires_grad_()
    with torch.autocast(device.type, dtype=torch.bfloat16):
        out = attnops.anchor_attention(leaf, key.bfloat16(), value)
        if has_float64(backend, OP):  # which autocast leaves alone
            wide = attnops.anchor_attention(query.double(), key.double(), value.double())
            assert wide.dtype == torch.float64
    assert out.dtype == torch.bfloat16
    halves = [x.detach().bfloat16() for x in (query, key, value)]
    assert torch.equal(out.detach(), attnops.anchor_attention(*halves))
    out.sum().backward()
    assert leaf.grad.dtype == torch.float32


def test_more_anchors_than_fused(device):
    query, key, value, _ = operands(device, torch.float32, 1, 4, 3, 5, 7, anchors=600)
    expected = reference.anchor_attention(query, key, value)
    torch.testing.assert_close(attnops.anchor_attention(query, key, value), expected)


def test_forced_backend_refuses_more_anchors_than_fused(backend, device):
    query, key, value, _ = operands(device, torch.float32, 1, 4, 3, 5, 7, anchors=513)
    if backend == "reference":
        attnops.anchor_attention(query, key, value)
        return
    with pytest.raises(attnops.BackendError, match=rf"'{backend}' is forced.*S=513"):
        attnops.anchor_attention(query, key, value)


@harness.bad_input(
    ({"query": None}, TypeError, "query must be a tensor, got NoneType"),
    ({"key": torch.ones(2, 4, 6).int()}, TypeError, "key has dtype torch.int32"),
    ({"key": torch.ones(2, 4, 6).double()}, ValueError, "query is torch.float32 but key is"),
    ({"query": torch.ones(2, 4)}, ValueError, r"must be \[B, Ck, \*spatial\], got \[2, 4\]"),
    ({"key": torch.ones(2, 5, 6)}, ValueError, r"key must be \[2, 4, S\], got \[2, 5, 6\]"),
    (
        {"value": torch.ones(2, 3, 7)},
        ValueError,
        r"value must be \[2, Cv, 6\], got \[2, 3, 7\]",
    ),
    ({"value": torch.ones(1, 3, 6)}, ValueError, r"value must be \[2, Cv, 6\]"),
    ({"bias": torch.ones(2, 7)}, ValueError, r"bias must be \[2, 6\], got \[2, 7\]"),
    ({"key": torch.ones(2, 4, 0), "value": torch.ones(2, 3, 0)}, ValueError, "one anchor"),
    ({"scale": "big"}, TypeError, "scale must be a number or None, got 'big'"),
    ({"key": torch.ones(2, 4, 6, device="meta")}, ValueError, "expected one device"),
)
def test_bad_input(change, error, message):
    arguments = {
        "query": torch.ones(2, 4, 5, 5),
        "key": torch.ones(2, 4, 6),
        "value": torch.ones(2, 3, 6),
    }
    with pytest.raises(error, match=message):
        attnops.anchor_attention(**(arguments | change))
