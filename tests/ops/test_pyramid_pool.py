"""`pyramid_pool` on every backend against adaptive pooling in float64."""

from __future__ import annotations

import harness
import pytest
import torch
from draws import drawn, integers, layouts, lists, one_of, shapes
from harness import DTYPES, LAYOUTS, check_op, in_layout, skip_unsupported

import attnops
from attnops import reference

OP = "pyramid_pool"
REDUCE = pytest.mark.parametrize("reduce", ["mean", "max"])
SHAPES = [  # B, C, H, W, sizes
    (2, 5, 13, 17, (1, 3, 6, 8)),
    (1, 37, 24, 24, (1, 3, 6, 8)),
    (2, 3, 4, 5, (1, 3, 6, 8)),  # smaller than the grid
    (1, 4, 1, 19, (1, 2, 3, 6)),
    (1, 4, 19, 1, (1, 4, 8, 12)),
    (3, 1, 1, 1, (1, 3)),
    (1, 66, 9, 33, (2,)),
    (1, 2, 40, 70, (5, 1, 5)),  # unordered, repeated
    (1, 19, 31, 23, (16,)),
]


@REDUCE
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_float64(backend, device, shape, dtype, reduce):
    skip_unsupported(backend, dtype)
    *dims, sizes = shape
    x = torch.randn(dims, dtype=dtype, device=device)
    for layout in ("contiguous", "channels_last"):
        out, _ = check_op(
            lambda x: attnops.pyramid_pool(x, sizes, reduce),
            lambda x: reference.pyramid_pool(x, sizes, reduce),
            [in_layout(x, layout)],
        )
        assert out.is_contiguous()


@REDUCE
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(backend, device, threads, layout, reduce):
    x = in_layout(torch.randn(2, 7, 11, 9, device=device), layout)
    _, grad = check_op(
        lambda x: attnops.pyramid_pool(x, (1, 2, 5), reduce),
        lambda x: reference.pyramid_pool(x, (1, 2, 5), reduce),
        [x],
    )
    inner = layout in ("channels_last", "sliced_channels_last")
    memory_format = torch.channels_last if inner else torch.contiguous_format
    assert grad.is_contiguous(memory_format=memory_format)


@REDUCE
def test_strided_gradients(backend, device, reduce):
    x = torch.randn(2, 6, 12, 10, device=device, requires_grad=True)
    out = attnops.pyramid_pool(x, (1, 3), reduce)
    expected = reference.pyramid_pool(x, (1, 3), reduce)
    transposed = torch.randn(10, 6, 2, device=device).permute(2, 1, 0)
    sliced = torch.randn(2, 12, 20, device=device)[:, ::2, ::2]
    expanded = torch.randn(1, 6, 1, device=device).expand(2, 6, 10)
    for grad in (transposed, sliced, expanded):
        found, wanted = (
            torch.autograd.grad(y, x, grad, retain_graph=True)[0] for y in (out, expected)
        )
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


@drawn(
    60,
    shape=shapes(3, 35, 40, 40),
    sizes=lists(integers(1, 13), 1, 5),
    reduce=one_of(["mean", "max"]),
    layout=layouts,
)
def test_any_shape(pytestconfig, shape, sizes, reduce, layout):
    torch.manual_seed(sum(shape))
    device = pytestconfig.getoption("--device")
    x = torch.randn(shape, device=device)
    check_op(
        lambda x: attnops.pyramid_pool(x, sizes, reduce),
        lambda x: reference.pyramid_pool(x, sizes, reduce),
        [in_layout(x, layout)],
    )


@REDUCE
def test_nan_and_infinity_propagate(backend, device, reduce):
    x = torch.randn(1, 4, 9, 9, device=device)
    x[0, 0, 2, 3] = torch.nan
    x[0, 1, 8, 8] = torch.inf
    x[0, 2, 0, 0] = -torch.inf
    x[0, 2, 0, 1] = torch.inf
    x[0, 3] = -torch.inf
    for layout in ("contiguous", "channels_last"):
        out = attnops.pyramid_pool(in_layout(x, layout), (1, 3, 4), reduce)
        expected = reference.pyramid_pool(x, (1, 3, 4), reduce)
        torch.testing.assert_close(out, expected, equal_nan=True)


def test_maximum_of_ties_and_nans_sends_gradient_where_pytorch_does(backend, device):
    x = torch.randint(0, 3, (2, 5, 12, 14), device=device).float()
    x[0, 1, 3:5, 3:6] = torch.nan
    for layout in ("contiguous", "channels_last"):
        leaf = in_layout(x, layout).detach().requires_grad_()
        grad = torch.randn(2, 5, 35, device=device)
        found = torch.autograd.grad(attnops.pyramid_pool(leaf, (1, 3, 5), "max"), leaf, grad)[0]
        wanted = torch.autograd.grad(reference.pyramid_pool(leaf, (1, 3, 5), "max"), leaf, grad)[0]
        torch.testing.assert_close(found, wanted)


@REDUCE
def test_runs_are_bit_equal(backend, device, threads, reduce):
    x = torch.randn(2, 33, 45, 31, device=device, requires_grad=True)
    grad = torch.randn(2, 33, 110, device=device)

    def once():
        out = attnops.pyramid_pool(x, reduce=reduce)
        return out, torch.autograd.grad(out, x, grad)[0]

    for first, second in zip(once(), once(), strict=True):
        assert torch.equal(first, second)


@REDUCE
@pytest.mark.parametrize("dims", [(0, 5, 6, 7), (2, 0, 6, 7)], ids=str)
def test_empty(backend, device, dims, reduce):
    x = torch.randn(dims, device=device, requires_grad=True)
    out = attnops.pyramid_pool(x, (1, 2), reduce)
    assert out.shape == (*dims[:2], 5)
    out.sum().backward()
    assert x.grad.shape == x.shape


@REDUCE
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_opcheck(backend, device, layout, reduce):
    x = in_layout(torch.randn(2, 3, 5, 4, device=device), layout).requires_grad_()
    op = torch.ops.attnops.pyramid_pool.default
    torch.library.opcheck(op, (x, [1, 3], reduce == "max"))


@REDUCE
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradcheck(backend, device, layout, reduce):
    skip_unsupported(backend, torch.float64)
    x = in_layout(torch.randn(2, 3, 5, 4, device=device, dtype=torch.float64), layout)
    function = lambda x: attnops.pyramid_pool(x, (1, 2, 3), reduce)  # noqa: E731
    assert torch.autograd.gradcheck(function, (x.requires_grad_(),))


@pytest.mark.inductor
@REDUCE
def test_compiles_whole_with_dynamic_shapes(backend, device, reduce):
    compiled = torch.compile(
        lambda x: attnops.pyramid_pool(x * 2, (1, 3), reduce) + 1, fullgraph=True, dynamic=True
    )
    for dims, layout in [((2, 5, 7, 9), "contiguous"), ((1, 6, 12, 8), "channels_last")]:
        x = in_layout(torch.randn(dims, device=device), layout).requires_grad_()
        out = compiled(x)
        expected = reference.pyramid_pool(x * 2, (1, 3), reduce) + 1
        torch.testing.assert_close(out, expected)
        grad = torch.randn_like(out)
        found, wanted = (torch.autograd.grad(y, x, grad)[0] for y in (out, expected))
        torch.testing.assert_close(found, wanted)


def test_exports_with_dynamic_shapes(backend, device):
    class Pool(torch.nn.Module):
        def forward(self, x):
            return attnops.pyramid_pool(x)

    program = torch.export.export(
        Pool(), (torch.randn(2, 3, 9, 7, device=device),), dynamic_shapes=(harness.DYNAMIC_SIDES,)
    )
    x = torch.randn(2, 3, 20, 31, device=device)
    torch.testing.assert_close(program.module()(x), reference.pyramid_pool(x))


def test_autocast_keeps_the_dtype(backend, device):
    x = torch.randn(1, 3, 8, 8, device=device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        out = attnops.pyramid_pool(x)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, reference.pyramid_pool(x))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1.0],), TypeError, "x must be a tensor, got list"),
        ((torch.ones(1, 2, 3, 3, dtype=torch.int64),), TypeError, "dtype torch.int64"),
        ((torch.ones(2, 3, 3),), ValueError, r"x must be \[B, C, H, W\], got \[2, 3, 3\]"),
        ((torch.ones(1, 2, 0, 3),), ValueError, "no pixels"),
        ((torch.ones(1, 2, 3, 3), ()), ValueError, "sizes is empty"),
        ((torch.ones(1, 2, 3, 3), (1, 0)), ValueError, "at least 1, got 0"),
        ((torch.ones(1, 2, 3, 3), (1, -2)), ValueError, "at least 1, got -2"),
        ((torch.ones(1, 2, 3, 3), (1.5,)), TypeError, "integers, got 1.5"),
        ((torch.ones(1, 2, 3, 3), 3), TypeError, "sequence of integers"),
        ((torch.ones(1, 2, 3, 3), (1,), "sum"), ValueError, "'mean' or 'max', got 'sum'"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        attnops.pyramid_pool(*arguments)
