"""The budget itself: it holds for every way of summing, and it catches real errors."""

from __future__ import annotations

import pytest
import torch
from harness import DTYPES, check_op, check_results, error, modelled_errors, run
from torch import Tensor
from torch.nn.functional import gelu, interpolate

from attnops import reference

pytestmark = pytest.mark.usefixtures("without_onednn")
HALVES = (torch.float16, torch.bfloat16)
LABELS = torch.randint(5, (2, 19, 28), generator=torch.Generator().manual_seed(0))

# The definitions, as functions of float tensors of these shapes.
OPS = {
    "group": (lambda a, b, c: reference.group_attention(a, b, c, 2), [(2, 6, 20, 20)] * 3),
    "anchor": (reference.anchor_attention, [(2, 30, 9, 8), (2, 30, 50), (2, 20, 50)]),
    "local": (lambda *t: reference.local_attention(*t, 3, 2, 1.0), [(2, 8, 9, 8)] * 3),
    "pool": (reference.pyramid_pool, [(2, 8, 19, 28)]),
    "gate": (reference.upsample_gate, [(2, 8, 5, 7), (2, 8, 19, 28)]),
    "merge": (
        lambda a, b, w: reference.merge_scales([a, b], w),
        [(2, 5, 5, 7), (2, 5, 9, 8), (2, 2, 19, 28)],
    ),
    "loss": (lambda x: reference.upsample_cross_entropy(x, LABELS), [(2, 5, 5, 7)]),
    "gelu": (reference.depthwise_gelu, [(2, 8, 9, 8), (8, 1, 5, 5), (8,)]),
    "strip": (
        lambda x, w, b, h, v: reference.strip_conv(x, w, b, [((h, None), (v, None))]),
        [(2, 8, 19, 18), (8, 1, 5, 5), (8,), (8, 1, 1, 7), (8, 1, 7, 1)],
    ),
    "nmf": (
        lambda x, b: reference.nmf(x.relu(), b.abs(), 3, 1.0, 1e-2)[1],
        [(1, 16, 30), (1, 16, 4)],
    ),
}


def drawn(shapes, dtype=torch.float32) -> list[Tensor]:
    return [torch.randn(shape).to(dtype) for shape in shapes]


def gradient(function, inputs) -> Tensor:
    return torch.randn_like(function(*(x.double() for x in inputs))).to(inputs[0].dtype)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("name", OPS)
def test_the_model_alone_holds_for_pytorch(name, dtype):
    function, shapes = OPS[name]
    inputs = drawn(shapes, dtype)
    grad = gradient(function, inputs)
    oracle = run(function, [x.double() for x in inputs], grad)
    found = run(function, inputs, grad)
    expected = modelled_errors(function, inputs, grad)
    for i, (actual, wanted, modelled) in enumerate(zip(found, oracle, expected, strict=True)):
        assert error(actual, wanted) <= (3 if i else 2) * modelled


@pytest.mark.parametrize("name", OPS)
def test_the_model_is_about_as_large_as_rounding(name):
    """In float32 a few hundred units in the last place at most, and the same in every run."""
    function, shapes = OPS[name]
    inputs = drawn(shapes)
    grad = gradient(function, inputs)
    expected = modelled_errors(function, inputs, grad)
    for value, modelled in zip(run(function, inputs, grad), expected, strict=True):
        assert 0 < modelled < 200 * torch.finfo(value.dtype).eps * value.abs().max()
    torch.randn(5)
    assert modelled_errors(function, inputs, grad) == expected


def ordered_sum(terms: Tensor, order: Tensor, lanes: int) -> Tensor:
    """The sum over the last axis, in `lanes` chains of additions of `order`."""
    count = -(-terms.shape[-1] // lanes) * lanes
    padded = torch.nn.functional.pad(terms[..., order], (0, count - terms.shape[-1]))
    total = torch.zeros_like(padded[..., :lanes])
    for chunk in padded.split(lanes, dim=-1):
        total = total + chunk
    found = total[..., 0]
    for lane in range(1, lanes):
        found = found + total[..., lane]
    return found


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("lanes", [1, 4, 16])
@pytest.mark.parametrize("seed", range(4))
def test_sums_in_any_order_are_within_it(seed, lanes, positive):
    """Whatever a BLAS, an instruction set or a number of threads makes of a sum."""
    torch.manual_seed(seed)
    order = torch.randperm(600)

    def group(theta, phi, g):
        return reference.group_attention(theta, phi, g, 1)

    def other(theta, phi, g):
        terms = (phi * g).flatten(1)
        return theta * ordered_sum(terms, order, lanes)[:, None, None, None]

    inputs = [x.abs() if positive else x for x in drawn([(3, 6, 10, 10)] * 3)]
    check_op(other, group, inputs)


class Rounded(torch.autograd.Function):
    """A value stored in fewer bits on the way, gradients too."""

    @staticmethod
    def forward(ctx, x, cut):
        ctx.cut = cut
        return cut(x)

    @staticmethod
    def backward(ctx, grad):
        return ctx.cut(grad), None


def in_bfloat16(x: Tensor) -> Tensor:
    return Rounded.apply(x, lambda t: t.bfloat16().to(t.dtype))


def in_tf32(x: Tensor) -> Tensor:
    """Ten bits of mantissa, as tensor cores take float32."""
    return Rounded.apply(x, lambda t: (t.view(torch.int32) & ~0x1FFF).view(torch.float32))


def attention(query, key, value, scale=None, last=None, cut=lambda x: x):
    q, k = cut(query.flatten(2)), cut(key)
    scores = (q.mT @ k) * (key.shape[1] ** -0.5 if scale is None else scale)
    shares = scores.exp() / scores[..., :last].exp().sum(2, keepdim=True)
    return (cut(value) @ cut(shares).mT).unflatten(2, query.shape[2:])


def group_in(dtype: torch.dtype, theta: Tensor, phi: Tensor, g: Tensor) -> Tensor:
    """Two groups, with running sums in half precision."""
    total = torch.zeros(theta.shape[0], 2, dtype=dtype)
    for terms in (phi * g).unflatten(1, (2, -1)).flatten(2).to(dtype).unbind(2):
        total = total + terms
    width = theta.shape[1] // 2
    return theta * total.to(theta.dtype).repeat_interleave(width, 1)[:, :, None, None]


def tapped(x, w, b, tap):
    return gelu(reference.strip_conv(x, w * tap, b, []))


TAP = torch.ones(5, 5)
TAP[1, 3] = 1.001
GONE = torch.ones(5, 5)
GONE[4, 4] = 0

WRONG = {
    "a tap 0.1 % off": ("gelu", lambda x, w, b: tapped(x, w, b, TAP), [torch.float32]),
    "a tap left out": ("gelu", lambda x, w, b: tapped(x, w, b, GONE.to(x)), DTYPES),
    "a gelu by tanh": (
        "gelu",
        lambda x, w, b: gelu(reference.strip_conv(x, w, b, []), approximate="tanh"),
        [torch.float32, torch.float64],
    ),
    "an anchor not counted": ("anchor", lambda *t: attention(*t, last=-1), DTYPES),
    "a scale 0.1 % off": (
        "anchor",
        lambda *t: attention(*t, scale=1.001 * 30**-0.5),
        [torch.float32, torch.float64],
    ),
    "products in TF32": ("anchor", lambda *t: attention(*t, cut=in_tf32), [torch.float32]),
    "sums in bfloat16": (
        "group",
        lambda *t: group_in(torch.bfloat16, *t),
        [torch.float32, torch.bfloat16],
    ),
    "sums in float16": ("group", lambda *t: group_in(torch.float16, *t), [torch.float32]),
    "a position left out": (
        "group",
        lambda a, b, c: reference.group_attention(
            a, torch.cat([b[..., :-1], torch.zeros_like(b[..., -1:])], 3), c, 2
        ),
        DTYPES,
    ),
    "other corners": (
        "gate",
        lambda g, x: reference.upsample_gate(g, x, align_corners=True),
        DTYPES,
    ),
    "resized in bfloat16": (
        "gate",
        lambda g, x: x + x * in_bfloat16(interpolate(g, x.shape[2:], mode="bilinear")).sigmoid(),
        [torch.float32],
    ),
    "bins a row short": (
        "pool",
        lambda x: reference.pyramid_pool(torch.cat([x[:, :, :-1], x[:, :, -2:-1]], 2)),
        DTYPES,
    ),
    "a scratch in bfloat16": (
        "merge",
        lambda a, b, w: reference.merge_scales([in_bfloat16(a), b], w),
        [torch.float32, torch.float16],
    ),
    "one label wrong": (
        "loss",
        lambda x: reference.upsample_cross_entropy(
            x, torch.cat([LABELS[:, :, :-1], LABELS[:, :, -1:].roll(1, 1)], 2)
        ),
        [torch.float32, torch.float64],
    ),
    "a step too few": (
        "nmf",
        lambda x, b: reference.nmf(x.relu(), b.abs(), 2, 1.0, 1e-2)[1],
        DTYPES,
    ),
    "another eps": (
        "nmf",
        lambda x, b: reference.nmf(x.relu(), b.abs(), 3, 1.0, 1.1e-2)[1],
        [torch.float32, torch.float64],
    ),
    "a neighbour's key": (
        "local",
        lambda q, k, v: reference.local_attention(q, k.roll(1, 3), v, 3, 2, 1.0),
        DTYPES,
    ),
}
CAUGHT = [(name, dtype) for name, (_, _, dtypes) in WRONG.items() for dtype in dtypes]


@pytest.mark.parametrize(("name", "dtype"), CAUGHT, ids=str)
def test_real_errors_are_caught(name, dtype):
    op, wrong, _ = WRONG[name]
    function, shapes = OPS[op]
    with pytest.raises(AssertionError, match=r"error .*, allowed"):
        check_op(wrong, function, drawn(shapes, dtype))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_error_in_one_result_alone_is_caught(op, dtype):
    """The sign of the largest value of the output, or of any one gradient."""
    function, shapes = OPS[op]
    inputs = drawn(shapes, dtype)
    grad = gradient(function, inputs)
    found = run(function, inputs, grad)
    check_results(found, function, inputs, grad)
    for i, value in enumerate(found):
        wrong = value.clone(memory_format=torch.contiguous_format)
        wrong.view(-1)[value.abs().argmax()] *= -1
        with pytest.raises(AssertionError, match=r"error .*, allowed"):
            check_results([*found[:i], wrong, *found[i + 1 :]], function, inputs, grad)
