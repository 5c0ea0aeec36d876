"""The Triton launchers themselves, under the interpreter: run by test_triton_interpreter.py.

Not collected by name, since TRITON_INTERPRET has to be set before Triton is imported. The public
ops have tests of their own; here are the launchers' inner interface, all dtypes, and what only
these kernels do: padding, slabs, groups of batch items, splits, segments, tiles.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from harness import check_results
from torch import Tensor
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

import attnops
from attnops._layout import empty_map
from attnops.kernels import _launch
from attnops.kernels.anchor_attention import backward as anchor_attention_backward
from attnops.kernels.anchor_attention import forward as anchor_attention
from attnops.kernels.anchor_attention import partials, tiles
from attnops.kernels.aot import triton as aot_triton
from attnops.kernels.group_attention import backward as group_attention_backward
from attnops.kernels.group_attention import forward as group_attention
from attnops.kernels.local_attention import backward as local_attention_backward
from attnops.kernels.local_attention import forward as local_attention
from attnops.kernels.nmf import backward as nmf_backward
from attnops.kernels.nmf import plan as nmf_plan
from attnops.kernels.pyramid_pool import backward as pyramid_pool_backward
from attnops.kernels.pyramid_pool import forward as pyramid_pool
from attnops.kernels.pyramid_pool import segments
from attnops.kernels.strip_conv import plan as strip_plan
from attnops.kernels.upsample_gate import backward as upsample_gate_backward
from attnops.kernels.upsample_gate import forward as upsample_gate

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
FLAGS = (False, True)


def in_layout(x: Tensor, inner: bool) -> Tensor:
    return empty_map(x.shape, x, inner).copy_(x)


@pytest.fixture(autouse=True)
def launches(monkeypatch: pytest.MonkeyPatch) -> list:
    """Every launch of a test, to be held against what is compiled ahead of time."""
    found = []

    def run(kernel, programs, *args, launch):
        found.append((kernel, launch))
        original(kernel, programs, *args, launch=launch)

    original = _launch.run
    for module in aot_triton.modules():
        if module is not _launch and hasattr(module, "run"):
            monkeypatch.setattr(module, "run", run)
    return found


def assert_compiled_ahead(launches: list) -> None:
    cases = {(case.kernel.__name__, str(case.launch)) for case in aot_triton.all_cases()}
    assert launches
    for kernel, launch in launches:
        assert (kernel.__name__, str(launch)) in cases


# anchor_attention


def plain_attention(query, key, value, bias, scale):
    scores = torch.einsum("bcn,bcs->bns", query, key) * scale
    if bias is not None:
        scores = scores + bias[:, None]
    return torch.einsum("bns,bcs->bcn", scores.softmax(2), value)


def attention_results(function, grad, query, key, value, bias, scale):
    """Output and gradients of a differentiable attention."""
    leaves = [t.detach().requires_grad_() for t in (query, key, value, bias) if t is not None]
    out = function(*leaves[:3], None if bias is None else leaves[3], scale)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def launched_attention(grad, query, key, value, bias, scale):
    assert anchor_attention.refuse(query, key, value, bias, scale) is None
    out, lse = anchor_attention.forward(query, key, value, bias, scale)
    found = anchor_attention_backward.backward(grad, query, key, value, bias, lse, scale)
    assert lse.dtype == torch.float32
    assert out.stride() == grad.stride() and found[0].stride() == query.stride()
    assert all(t.is_contiguous() for t in found[1:])
    return [out, *found[: 3 if bias is None else 4]]


def check_attention(
    dtype, inner, batch, key_channels, value_channels, positions, anchors, with_bias=True
):
    query = in_layout(torch.randn(batch, key_channels, positions).to(dtype), inner)
    grad = in_layout(torch.randn(batch, value_channels, positions).to(dtype), inner)
    key = torch.randn(batch, key_channels, anchors).to(dtype)
    value = torch.randn(batch, value_channels, anchors).to(dtype)
    bias = torch.randn(batch, anchors).to(dtype) if with_bias else None
    operands = (grad, query, key, value, bias)
    scale = key_channels**-0.5
    found = launched_attention(*operands, scale)
    assert all(actual.dtype == dtype for actual in found)
    inputs = [t for t in operands[1:] if t is not None]

    def definition(query, key, value, bias=None):
        return plain_attention(query, key, value, bias, scale)

    check_results(found, definition, inputs, grad)


@pytest.mark.parametrize("inner", FLAGS, ids=["contiguous", "inner"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [(2, 5, 7, 35, 110), (1, 40, 33, 35, 7), (1, 16, 24, 48, 1), (1, 24, 8, 40, 300)],
    ids=str,
)
def test_attention(shape, dtype, inner, launches):
    check_attention(dtype, inner, *shape)
    assert_compiled_ahead(launches)


@pytest.mark.parametrize("inner", FLAGS, ids=["contiguous", "inner"])
def test_attention_without_bias(inner):
    check_attention(torch.float32, inner, 1, 9, 20, 70, 130, with_bias=False)


@pytest.mark.parametrize("inner", FLAGS, ids=["contiguous", "inner"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "batch, positions", [(3, 30), (2, 700), (1, 513)], ids=["groups", "slabs", "last slab"]
)
def test_attention_in_slabs(batch, positions, dtype, inner, monkeypatch):
    """Scratch for two tiles only: the positions go through in several slabs or groups of items."""
    monkeypatch.setattr(anchor_attention_backward, "SLAB_ELEMENTS", 2 * 128 * 128)
    monkeypatch.setattr(partials, "MIN_SPLIT", 64)  # several splits as well
    check_attention(dtype, inner, batch, 6, 140, positions, 20)


@pytest.mark.parametrize("inner", FLAGS, ids=["contiguous", "inner"])
def test_attention_tf32_variant(inner, launches, monkeypatch):
    """TF32 products are the same here; their variant has other tiles."""
    monkeypatch.setattr(tiles, "precision_of", lambda *facts: "tf32")
    check_attention(torch.float32, inner, 1, 20, 36, 44, 110)
    assert all(launch.constants.get("PRECISION", "tf32") == "tf32" for _, launch in launches)
    assert_compiled_ahead(launches)


@pytest.mark.parametrize("inner", FLAGS, ids=["contiguous", "inner"])
def test_attention_of_truncated_factors(inner, monkeypatch):
    """Tensor cores read 10 bits of a factor's mantissa: float32 stays within its budget."""
    create_dot = InterpreterBuilder.create_dot

    def truncated(x):
        bits = np.ascontiguousarray(x.data).view(np.uint32) & np.uint32(0xFFFFE000)
        return TensorHandle(bits.view(np.float32), x.dtype)

    def of_truncated(builder, a, b, *rest):
        return create_dot(builder, truncated(a), truncated(b), *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", of_truncated)
    check_attention(torch.float32, inner, 1, 300, 70, 150, 110)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=str)
def test_attention_spreads_nonfinite_values_no_further_than_pytorch(bad):
    query, grad = torch.randn(1, 4, 20), torch.randn(1, 6, 20)
    key, value = torch.randn(1, 4, 10), torch.randn(1, 6, 10)
    query[0, 1, 3] = bad
    grad[0, 2, 7] = bad
    found = launched_attention(grad, query, key, value, None, 0.5)
    wanted = attention_results(plain_attention, grad, query, key, value, None, 0.5)
    for actual, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(actual, expected, equal_nan=True)


def test_attention_padding_never_leaks():
    """Positions of the last tile that do not exist, with biases whose exponentials overflow."""
    query, grad = torch.zeros(1, 3, 5), torch.randn(1, 3, 5)
    key, value = torch.randn(1, 3, 4), torch.randn(1, 3, 4)
    bias = torch.tensor([[500.0, 480.0, -torch.inf, 500.0]])
    found = launched_attention(grad, query, key, value, bias, 1.0)
    wanted = attention_results(plain_attention, grad, query, key, value, bias, 1.0)
    for actual, expected in zip(found, wanted, strict=True):
        assert actual.isfinite().all()
        torch.testing.assert_close(actual, expected)


def test_attention_unaligned_storage(launches):
    """A query that starts at an odd element is copied, not read with assumed alignment."""
    storage = torch.randn(1 + 2 * 16 * 16)
    query = storage[1:].view(2, 16, 16)
    key, grad = torch.randn(2, 16, 12), torch.randn(2, 16, 16)
    found = launched_attention(grad, query, key, key, None, 0.25)
    wanted = attention_results(plain_attention, grad, query, key, key.clone(), None, 0.25)
    for actual, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(actual, expected)


def test_attention_refusals():
    query, key = torch.randn(1, 4, 6), torch.randn(1, 4, 600)
    assert "S=600" in anchor_attention.refuse(query, key, key, None, 1.0)
    wide = [query.double(), key[..., :8].double()]
    assert "float64" in anchor_attention.refuse(wide[0], wide[1], wide[1], None, 1.0)


# pyramid_pool


def plain_pool(x: Tensor, sizes, use_max: bool):
    if not use_max:
        return torch.cat([F.adaptive_avg_pool2d(x, n).flatten(2) for n in sizes], 2), None
    levels = [F.adaptive_max_pool2d(x, n, return_indices=True) for n in sizes]
    out, argmax = (torch.cat([level[i].flatten(2) for level in levels], 2) for i in (0, 1))
    return out, argmax


def check_pool(x: Tensor, inner: bool, sizes, use_max: bool):
    x = in_layout(x, inner)
    sizes = list(sizes)
    assert pyramid_pool.refuse(x, sizes, use_max) is None
    out, argmax = pyramid_pool.forward(x, sizes, use_max)
    grad = torch.randn(out.shape).to(x.dtype)
    if use_max:
        wanted, indices = plain_pool(x, sizes, use_max)
        assert torch.equal(out, wanted) and torch.equal(argmax.long(), indices)
    else:
        assert argmax.numel() == 0
    found = pyramid_pool_backward.backward(grad, argmax, *x.shape[2:], sizes, use_max, inner)
    assert found.dtype == x.dtype and found.stride() == empty_map(x.shape, x, inner).stride()
    check_results([out, found], lambda x: plain_pool(x, sizes, use_max)[0], [x], grad)


POOL_SHAPES = [
    ((2, 5, 13, 11), (1, 3, 6, 8)),  # nothing divides
    ((1, 3, 24, 48), (1, 3, 6, 8)),  # everything divides: edges coincide
    ((1, 40, 5, 3), (1, 3, 6, 8)),  # smaller than most grids
    ((2, 2, 1, 19), (1, 2, 6)),
    ((1, 4, 7, 1), (4, 12)),
    ((1, 2, 3, 300), (1, 8)),  # two tiles of columns, with a bin across their border
]


@pytest.mark.parametrize("use_max", FLAGS, ids=["mean", "max"])
@pytest.mark.parametrize("inner", FLAGS, ids=["contiguous", "inner"])
@pytest.mark.parametrize("shape, sizes", POOL_SHAPES, ids=str)
def test_pool(shape, sizes, inner, use_max):
    check_pool(torch.randn(shape), inner, sizes, use_max)


@pytest.mark.parametrize("use_max", FLAGS, ids=["mean", "max"])
@pytest.mark.parametrize("inner", FLAGS, ids=["contiguous", "inner"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_pool_reduced_precision(dtype, inner, use_max, launches):
    check_pool(torch.randn(1, 8, 9, 16).to(dtype), inner, (1, 3, 6, 8), use_max)
    assert_compiled_ahead(launches)


@pytest.mark.parametrize("inner", FLAGS, ids=["contiguous", "inner"])
def test_pool_ties_and_nonfinite_values(inner):
    """The first of equal maxima wins, the last NaN, as in PyTorch; both zeros are equal."""
    x = torch.randint(-2, 3, (2, 3, 10, 9)).float()
    x[x == 1] = -0.0
    x[torch.rand(x.shape) < 0.1] = torch.nan
    x[torch.rand(x.shape) < 0.1] = torch.inf
    x[0, 0] = -torch.inf
    x = in_layout(x, inner)
    out, argmax = pyramid_pool.forward(x, [1, 2, 5], True)
    wanted, indices = plain_pool(x, [1, 2, 5], True)
    torch.testing.assert_close(out, wanted, equal_nan=True, rtol=0, atol=0)
    assert torch.equal(argmax.long(), indices)
    mean = pyramid_pool.forward(x, [1, 2, 5], False)[0]
    expected = plain_pool(x, [1, 2, 5], False)[0]
    torch.testing.assert_close(mean, expected, equal_nan=True)


def test_pool_refusals():
    x = torch.randn(1, 1, 2, 2)
    assert "65 bins" in pyramid_pool.refuse(x, [32, 33], False)
    wide = torch.empty(1, 1, 1, segments.max_width((1, 3)) + 1)
    assert "W=" in pyramid_pool.refuse(wide, [1, 3], False)
    assert "float64" in pyramid_pool.refuse(x.double(), [1], False)


@pytest.mark.parametrize("size", [1, 5, 24, 97, 700])
@pytest.mark.parametrize("sizes", [(1,), (1, 3, 6, 8), (7, 7), (16, 33)], ids=str)
def test_segments_hold_whole_bins(sizes, size):
    """The host's count of segments holds every index that the kernels can form."""
    count = segments.count_segments(size, sizes)
    assert 1 <= count <= size
    assert count <= segments.segment_capacity(sizes)
    assert segments.count_edges(size, sizes) <= segments.edge_capacity(sizes)
    edges = {i * size // n for n in sizes for i in range(1, n)}
    edges |= {-(-i * size // n) for n in sizes for i in range(1, n)}
    assert len(edges - {0, size}) + 1 <= count


# The ops of GALD: their values are tested through the public functions.


@pytest.mark.parametrize("inner", FLAGS, ids=["contiguous", "inner"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gald_launches_are_compiled_ahead(dtype, inner, launches):
    shape = (1, 16, 2, 3)
    maps = [in_layout(torch.randn(shape).to(dtype), inner) for _ in range(4)]
    grad, query, key, value = maps
    # A window of every capacity; the large ones take long here.
    for kernel in ([3, 3], [5, 5], [7, 7], [9, 9], [15, 15])[: 2 if inner else 5]:
        options = (kernel, [1, 2], 0.5, False)
        assert local_attention.refuse(query, key, value, *options) is None
        _, lse = local_attention.forward(query, key, value, *options)
        local_attention_backward.backward(*maps, lse, *options)
    options = (1, False, 1, 1.0, False)
    small = in_layout(torch.randn(1, 16, 2, 2).to(dtype), inner)
    assert upsample_gate.refuse(query, small, *options) is None
    upsample_gate.forward(query, small, *options)
    upsample_gate_backward.backward(grad, query, small, *options)
    for groups in (1, 2, 16):
        assert group_attention.refuse(query, key, value, groups) is None
        _, affinity = group_attention.forward(query, key, value, groups)
        group_attention_backward.backward(*maps, affinity, groups)
    assert_compiled_ahead(launches)


def test_gald_refusals():
    x = torch.randn(1, 2, 3, 3)
    assert "17x17" in local_attention.refuse(x, x, x, [17, 17], [1, 1], 1.0, False)
    wide = x.double()
    assert "float64" in local_attention.refuse(wide, wide, wide, [3, 3], [1, 1], 1.0, False)
    assert "float64" in upsample_gate.refuse(wide, wide, 1, False, 1, 1.0, False)
    assert "float64" in group_attention.refuse(wide, wide, wide, 1)


# The ops of SegNeXt and those on score maps: their values are tested through the public functions.


def run_with_gradients(function, *tensors: Tensor) -> None:
    leaves = [t.requires_grad_() for t in tensors]
    with attnops.use_backend("triton"):
        out = function(*leaves)
        out = out[0] + out[1].sum() if isinstance(out, tuple) else out
        torch.autograd.grad(out.sum(), leaves)


@pytest.mark.parametrize("inner", FLAGS, ids=["contiguous", "inner"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_segnext_launches_are_compiled_ahead(dtype, inner, launches, monkeypatch):
    monkeypatch.setattr(strip_plan, "FOR_THREADS", True)
    x = in_layout(torch.randn(1, 8, 5, 6).to(dtype), inner)
    local, bias = torch.randn(8, 1, 3, 3).to(dtype), torch.randn(8).to(dtype)
    run_with_gradients(attnops.depthwise_gelu, x, local, bias)

    def strip_conv(x, local, *strips):
        pairs = zip(strips[0::2], strips[1::2], strict=True)
        return attnops.strip_conv(x, local, None, [((r, None), (c, None)) for r, c in pairs])

    sides = [side for k in (7, 11, 21) for side in ((1, k), (k, 1))]
    for chosen in [(5, 5), *sides], [(3, 3), (1, 33), (33, 1)]:
        weights = [torch.randn(8, 1, *k).to(dtype) for k in chosen]
        run_with_gradients(strip_conv, x, *weights)
    for rank in (3, 17, 33):
        positive = in_layout(torch.rand(1, 8, 30).to(dtype), inner)
        bases = torch.rand(1, 8, rank).to(dtype)
        run_with_gradients(lambda x, bases: attnops.nmf(x, bases, steps=1), positive, bases)
    assert_compiled_ahead(launches)


@pytest.mark.parametrize("inner", FLAGS, ids=["contiguous", "inner"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_score_map_launches_are_compiled_ahead(dtype, inner, launches):
    maps = [in_layout(torch.randn(1, 5, n, n).to(dtype), inner) for n in (3, 5)]
    weights = in_layout(torch.randn(1, 2, 6, 7).to(dtype), inner)
    run_with_gradients(lambda *t: attnops.merge_scales(t[:2], t[2]), *maps, weights)
    for reduce in ("mean", "max"):
        run_with_gradients(lambda *t, r=reduce: attnops.merge_scales(t, None, r), *maps)
    target = torch.randint(5, (1, 9, 8))
    run_with_gradients(lambda x: attnops.upsample_cross_entropy(x, target), maps[0])
    with attnops.use_backend("triton"):
        attnops.upsample_argmax(maps[0], (9, 8))
    assert_compiled_ahead(launches)


@pytest.mark.parametrize(
    "dtype, inner, small, positions, rank",
    [
        (torch.float32, False, False, 78, 5),
        (torch.float32, True, True, 78, 20),
        (torch.float16, True, False, 78, 8),
        (torch.bfloat16, False, True, 80, 24),
    ],
)
def test_nmf_in_splits_of_many_tiles(dtype, inner, small, positions, rank, monkeypatch, launches):
    """Few splits, so that a program owns several tiles; aligned rows and others, all shapes."""
    x = in_layout(torch.rand(2, 8, positions).to(dtype), inner)
    bases = torch.rand(2, 8, rank).to(dtype)
    monkeypatch.setattr(nmf_plan, "UNITS", 4)
    monkeypatch.setattr(nmf_backward, "is_small", lambda like: small)

    def results(backend):
        with attnops.use_backend(backend):
            leaves = [t.detach().requires_grad_() for t in (x, bases)]
            found, coef = attnops.nmf(*leaves, steps=2)
            grads = torch.autograd.grad(found.sum() + coef.square().sum(), leaves)
            return [t.detach().float() for t in (found, coef, *grads)]

    found = results("triton")
    x, bases = x.float(), bases.float()
    allowed = 1e-4 if dtype == torch.float32 else 2e-2
    for actual, wanted in zip(found, results("reference"), strict=True):
        torch.testing.assert_close(
            actual, wanted, rtol=allowed, atol=allowed * wanted.abs().max().item()
        )
    assert_compiled_ahead(launches)
