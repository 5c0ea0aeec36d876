"""The Triton launchers of pyramid_pool: run by test_triton_interpreter.py, interpreted."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from harness import check_results
from recorded_launches import FLAGS, assert_compiled_ahead, in_layout
from torch import Tensor

from attnops._layout import empty_map
from attnops.kernels.pyramid_pool import backward as pyramid_pool_backward
from attnops.kernels.pyramid_pool import forward as pyramid_pool
from attnops.kernels.pyramid_pool import segments


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
