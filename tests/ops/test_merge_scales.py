"""`merge_scales` on every backend against resized maps in float64."""

from __future__ import annotations

import harness
import pytest
import torch
from draws import booleans, drawn, layouts, lists, one_of, shapes
from harness import DTYPES, LAYOUTS, check_op, in_layout, skip_unsupported

import attnops
from attnops import reference

OP = "merge_scales"
REDUCTIONS = ("attention", "mean", "max")
CASES = [  # B, K, sizes of the maps, size of the result
    (2, 5, ((7, 9), (4, 5), (2, 3)), (7, 9)),
    (1, 21, ((13, 13), (7, 7)), (13, 13)),
    (1, 19, ((3, 4),), (9, 14)),
    (1, 2, ((12, 10), (1, 1), (5, 30)), (6, 7)),  # down, a single pixel, mixed
    (2, 1, ((5, 1), (1, 33)), (1, 20)),
    (1, 40, ((4, 4), (2, 2), (8, 8), (3, 3)), (1, 1)),
]


def operands(device, dtype, batch, classes, sizes, size, attention=True):
    maps = [torch.randn(batch, classes, *s) for s in sizes]
    if attention:
        maps.append(torch.randn(batch, len(sizes), *size))
    return [m.to(device, dtype) for m in maps]


def calling(function, reduce, align_corners=True):
    """`function` of the maps and, for attention, of the logits as the last argument."""

    def call(*tensors):
        if reduce == "attention":
            *scores, logits = tensors
            return function(scores, logits, reduce, align_corners)
        return function(tensors, None, reduce, align_corners)

    return call


def fused(*options):
    return calling(attnops.merge_scales, *options)


def plain(*options):
    return calling(reference.merge_scales, *options)


@pytest.mark.parametrize("align_corners", [False, True], ids=["", "aligned"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_float64(backend, device, case, reduce, dtype, align_corners):
    skip_unsupported(backend, dtype)
    options = (reduce, align_corners)
    inputs = operands(device, dtype, *case, attention=reduce == "attention")
    for layout in ("contiguous", "channels_last"):
        arranged = [in_layout(x, layout) for x in inputs]
        out, *_ = check_op(fused(*options), plain(*options), arranged, grad_layout=layout)
        if inputs[0].shape[2:].numel() > 1:
            harness.assert_layout(out, layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("grad_layout", LAYOUTS)
def test_layouts(backend, device, layout, grad_layout):
    first, second, logits = operands(device, torch.float32, 2, 6, ((7, 9), (3, 4)), (8, 6))
    inputs = [in_layout(first, layout), in_layout(second, "channels_last"), logits.mT.clone().mT]
    check_op(fused("attention"), plain("attention"), inputs, grad_layout=grad_layout)


@drawn(
    40,
    shape=shapes(2, 40),
    sizes=lists(shapes(30, 30), 1, 4),
    size=shapes(30, 30),
    reduce=one_of(REDUCTIONS),
    align_corners=booleans(),
    layout=layouts,
)
def test_any_shape(pytestconfig, shape, sizes, size, reduce, align_corners, layout):
    torch.manual_seed(sum(shape))
    device = pytestconfig.getoption("--device")
    attention = reduce == "attention"
    inputs = operands(device, torch.float32, *shape, sizes, size, attention)
    arranged = [in_layout(x, layout) for x in inputs]
    options = (reduce, align_corners)
    check_op(fused(*options), plain(*options), arranged, grad_layout=layout)


@pytest.mark.parametrize("reduce", ["mean", "max"])
def test_logits_may_set_the_size_alone(backend, device, reduce):
    *scores, logits = operands(device, torch.float32, 2, 3, ((4, 5), (3, 2)), (8, 9))
    logits.requires_grad_()
    out = attnops.merge_scales(scores, logits[:, :1], reduce)
    expected = reference.merge_scales(scores, logits[:, :1], reduce)
    torch.testing.assert_close(out, expected)


def test_threads_do_not_matter(backend, device, threads):
    inputs = operands(device, torch.float32, 2, 9, ((33, 40), (17, 20)), (33, 40))
    check_op(fused("attention"), plain("attention"), inputs)
    harness.check_runs_are_bit_equal(fused("attention"), inputs)


def test_equal_maps_send_the_gradient_to_the_first(backend, device):
    x = torch.randn(1, 3, 5, 6, device=device)
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    grads = torch.autograd.grad(fused("max")(*inputs).sum(), inputs)
    assert torch.equal(grads[0], torch.ones_like(x)) and not grads[1].any()


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_nan_propagates(backend, device, reduce):
    *scores, logits = operands(device, torch.float32, 1, 4, ((6, 8), (3, 4)), (6, 8))
    scores[1][0, 1, 1, 1] = torch.nan
    scores[0][0, 2, 5, 7] = torch.nan
    inputs = [*scores, logits] if reduce == "attention" else scores
    expected = plain(reduce)(*inputs)
    torch.testing.assert_close(fused(reduce)(*inputs), expected, equal_nan=True)


def test_empty(backend, device):
    inputs = operands(device, torch.float32, 0, 4, ((5, 6), (2, 3)), (5, 6))
    harness.check_empty(fused("attention"), inputs, (0, 4, 5, 6))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_opcheck(backend, device, layout):
    inputs = operands(device, torch.float32, 2, 4, ((5, 6), (2, 3)), (5, 6))
    *scores, logits = (in_layout(x, layout).requires_grad_() for x in inputs)
    arguments = (scores, logits, 5, 6, 0, True, layout == "channels_last")
    torch.library.opcheck(torch.ops.attnops.merge_scales.default, arguments)


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradcheck(backend, device, layout, reduce):
    skip_unsupported(backend, torch.float64)
    attention = reduce == "attention"
    inputs = operands(device, torch.float64, 1, 2, ((3, 4), (2, 2)), (3, 4), attention)
    leaves = [in_layout(x, layout).requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(fused(reduce, False), leaves)


@pytest.mark.inductor
def test_compiles_whole_with_dynamic_shapes(backend, device):
    second = operands(device, torch.float32, 3, 8, ((12, 9), (5, 4)), (12, 9))
    draws = [
        operands(device, torch.float32, 2, 5, ((7, 9), (3, 4)), (7, 9)),
        [in_layout(x, "channels_last") for x in second],
    ]
    harness.check_compiles(fused("attention"), plain("attention"), draws)


def test_exports(backend, device):
    class Merge(torch.nn.Module):
        def forward(self, first, second, logits):
            return attnops.merge_scales([first, second], logits)

    inputs = tuple(operands(device, torch.float32, 2, 5, ((7, 9), (3, 4)), (7, 9)))
    program = torch.export.export(Merge(), inputs)
    torch.testing.assert_close(program.module()(*inputs), plain("attention")(*inputs))


def test_autocast_computes_in_the_autocast_dtype(backend, device):
    inputs = operands(device, torch.float32, 1, 8, ((5, 7), (2, 3)), (5, 7))
    harness.check_autocast(fused("attention"), inputs, backend)


MAPS = [torch.ones(2, 4, 5, 6), torch.ones(2, 4, 2, 3)]


@harness.bad_input(
    ({"scores": MAPS[0]}, TypeError, "scores must be a sequence of maps, got Tensor"),
    ({"scores": []}, ValueError, "scores is empty"),
    ({"scores": [MAPS[0], None]}, TypeError, r"scores\[1\] must be a tensor, got NoneType"),
    ({"scores": [MAPS[0], MAPS[1][:, 1:]]}, ValueError, r"scores\[1\] must be \[2, 4, h, w\]"),
    ({"scores": [MAPS[0], MAPS[1].half()]}, ValueError, r"scores\[1\] is torch.float16"),
    ({"scores": [MAPS[0], MAPS[1][:, :, :0]]}, ValueError, r"scores\[1\] is empty"),
    ({"attention_logits": None}, ValueError, "needs attention_logits, got None"),
    ({"attention_logits": torch.ones(2, 3, 5, 6)}, ValueError, r"must be \[2, 2, H, W\]"),
    ({"reduce": "sum"}, ValueError, "reduce must be .* got 'sum'"),
    ({"align_corners": 1}, TypeError, "align_corners must be True or False"),
)
def test_bad_input(change, error, message):
    arguments = {"scores": MAPS, "attention_logits": torch.ones(2, 2, 5, 6)}
    with pytest.raises(error, match=message):
        attnops.merge_scales(**(arguments | change))
