"""`upsample_cross_entropy` on every backend against full-resolution logits in float64."""

from __future__ import annotations

import harness
import pytest
import torch
from draws import booleans, drawn, layouts, shapes
from harness import DTYPES, LAYOUTS, check_op, in_layout, skip_unsupported
from torch.nn.functional import cross_entropy, interpolate

import attnops
from attnops import reference
from attnops.upsample_cross_entropy import MEAN, NONE, SUM

OP = "upsample_cross_entropy"
CASES = [  # (B, K, h, w), (H, W)
    ((2, 7, 5, 6), (20, 24)),
    ((1, 150, 2, 5), (8, 20)),
    ((1, 19, 9, 7), (4, 5)),  # down
    ((1, 2, 1, 1), (6, 50)),
    ((1, 171, 3, 4), (3, 4)),
    ((1, 21, 6, 5), (1, 40)),
]


def operands(device, dtype, shape, size, ignored=0.2):
    logits = (2 * torch.randn(shape)).to(device, dtype)
    target = torch.randint(shape[1], (shape[0], *size))
    target[torch.rand(target.shape) < ignored] = 255
    return logits, target.to(device)


def fused(target, *options, **named):
    return lambda x, *w: attnops.upsample_cross_entropy(x, target, *w, *options, **named)


def plain(target, *options, **named):
    return lambda x, *w: reference.upsample_cross_entropy(x, target, *w, *options, **named)


@pytest.mark.parametrize("align_corners", [False, True], ids=["", "aligned"])
@pytest.mark.parametrize("with_weight", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_reference_is_pytorchs_cross_entropy(case, reduction, with_weight, align_corners):
    logits, target = operands("cpu", torch.float64, *case)
    weight = torch.rand(case[0][1]).double() if with_weight else None
    full = interpolate(logits, case[1], mode="bilinear", align_corners=align_corners)
    expected = cross_entropy(full, target, weight, ignore_index=255, reduction=reduction)
    options = {"align_corners": align_corners, "reduction": reduction}
    found = reference.upsample_cross_entropy(logits, target, weight, **options)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("align_corners", [False, True], ids=["", "aligned"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_float64(backend, device, case, reduction, dtype, align_corners):
    skip_unsupported(backend, dtype)
    logits, target = operands(device, dtype, *case)
    options = {"reduction": reduction, "align_corners": align_corners}
    for layout in ("contiguous", "channels_last"):
        found = check_op(
            fused(target, **options), plain(target, **options), [in_layout(logits, layout)]
        )
        if case[0][2:] != (1, 1):
            harness.assert_layout(found[1], layout)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_weights_of_classes(backend, device, reduction):
    logits, target = operands(device, torch.float32, *CASES[0])
    weight = torch.rand(7, device=device) + 0.1
    options = {"reduction": reduction}
    check_op(fused(target, **options), plain(target, **options), [logits, weight])
    target, given = target.where(target != 255, 2), (weight, 2)
    check_op(fused(target, *given, **options), plain(target, *given, **options), [logits])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(backend, device, layout):
    logits, target = operands(device, torch.float32, (2, 6, 7, 9), (20, 30))
    target = target.mT.contiguous().mT
    check_op(fused(target), plain(target), [in_layout(logits, layout)])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32], ids=str)
def test_targets_of_other_integer_types(backend, device, dtype):
    logits, target = operands(device, torch.float32, *CASES[0])
    found = attnops.upsample_cross_entropy(logits, target.to(dtype))
    assert torch.equal(found, attnops.upsample_cross_entropy(logits, target))


@drawn(
    40, shape=shapes(2, 40, 12, 12), size=shapes(40, 40), align_corners=booleans(), layout=layouts
)
def test_any_shape(pytestconfig, shape, size, align_corners, layout):
    torch.manual_seed(sum(shape))
    device = pytestconfig.getoption("--device")
    logits, target = operands(device, torch.float32, shape, size)
    options = {"reduction": "sum", "align_corners": align_corners}
    inputs = [in_layout(logits, layout)]
    check_op(fused(target, **options), plain(target, **options), inputs)


@pytest.mark.parametrize("with_weight", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("min_kept", [0, 30, 10**6])
@pytest.mark.parametrize("keep_threshold", [0.0, 0.3, 1.0])
def test_hard_example_mining(backend, device, keep_threshold, min_kept, with_weight):
    """Thresholds on both sides of the probability at index `min_kept`."""
    logits, target = operands(device, torch.float32, *CASES[0])
    inputs = [logits, torch.rand(7, device=device) + 0.1] if with_weight else [logits]
    options = {"keep_threshold": keep_threshold, "min_kept": min_kept}
    check_op(fused(target, **options), plain(target, **options), inputs)


def test_mining_keeps_what_the_definition_says(device):
    """Four pixels at the logits' resolution, by hand."""
    p = torch.tensor([0.2, 0.5, 0.6, 0.9], dtype=torch.float64, device=device)
    logits = torch.stack([p, 1 - p]).log().view(1, 2, 2, 2)
    target = torch.zeros(1, 2, 2, dtype=torch.long, device=device)

    def loss(**options):
        return attnops.upsample_cross_entropy(logits, target, **options)

    losses = -p.log()
    torch.testing.assert_close(loss(keep_threshold=0.55), losses[:2].mean())
    # The threshold rises to the probability at index 3, which itself is not below it.
    torch.testing.assert_close(loss(keep_threshold=0.1, min_kept=3), losses[:3].mean())
    torch.testing.assert_close(loss(keep_threshold=0.95, min_kept=1), losses.mean())
    assert loss(keep_threshold=0.1, min_kept=0) == 0


@pytest.mark.parametrize("options", [{}, {"reduction": "sum"}, {"keep_threshold": 0.7}], ids=str)
def test_nothing_valid(backend, device, options):
    logits, target = operands(device, torch.float32, *CASES[0])
    target.fill_(255)
    leaf = logits.requires_grad_()
    loss = attnops.upsample_cross_entropy(leaf, target, **options)
    assert loss.isnan() if not options else loss == 0
    if options:
        (grad,) = torch.autograd.grad(loss, leaf)
        assert not grad.any()


def test_threads_do_not_matter(backend, device, threads):
    logits, target = operands(device, torch.float32, (2, 11, 9, 13), (50, 61))
    check_op(fused(target), plain(target), [logits])
    harness.check_runs_are_bit_equal(fused(target), [logits])


def test_large_logits_do_not_overflow(backend, device):
    logits, target = operands(device, torch.float32, *CASES[0])
    check_op(fused(target), plain(target), [logits * 200])


def test_nan_stays_where_it_is(backend, device):
    logits, target = operands(device, torch.float32, (1, 5, 6, 8), (12, 32), ignored=0)
    logits[0, 2, 1, 1] = torch.nan
    found = attnops.upsample_cross_entropy(logits, target, reduction="none")
    expected = reference.upsample_cross_entropy(logits, target, reduction="none")
    torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.mark.parametrize(("batch", "size"), [(0, (10, 12)), (2, (0, 12)), (2, (10, 0))], ids=str)
@pytest.mark.parametrize("options", [{"reduction": "sum"}, {"keep_threshold": 0.7}], ids=str)
def test_no_pixels(backend, device, batch, size, options):
    """The logits of two maps are there even so, and their gradient is zero, not undefined."""
    if backend == "reference" and 0 in size:
        pytest.skip("PyTorch resizes to no map without pixels")
    logits, target = operands(device, torch.float32, (batch, 4, 5, 6), size)
    leaf = logits.requires_grad_()
    loss = attnops.upsample_cross_entropy(leaf, target, **options)
    loss.backward()
    assert loss == 0 and torch.equal(leaf.grad, torch.zeros_like(leaf))
    mean = attnops.upsample_cross_entropy(leaf, target)
    assert mean.isnan()  # 0 / 0, as PyTorch's
    assert attnops.upsample_cross_entropy(leaf, target, reduction="none").shape == target.shape


@pytest.mark.parametrize(
    ("layout", "reduces"), [("contiguous", NONE), ("channels_last", MEAN)], ids=str
)
def test_opcheck(backend, device, layout, reduces):
    logits, target = operands(device, torch.float32, (2, 4, 5, 6), (10, 12))
    leaf = in_layout(logits, layout).requires_grad_()
    weight = None if reduces == NONE else torch.rand(4, device=device)
    arguments = (leaf, target, weight, 255, False, reduces, False)
    torch.library.opcheck(torch.ops.attnops.upsample_cross_entropy.default, arguments)


@pytest.mark.parametrize("options", [{}, {"keep_threshold": 0.4, "min_kept": 9}], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradcheck(backend, device, layout, options):
    skip_unsupported(backend, torch.float64)
    logits, target = operands(device, torch.float64, (1, 3, 2, 3), (5, 6))
    leaf = in_layout(logits, layout).requires_grad_()
    assert torch.autograd.gradcheck(fused(target, **options), [leaf])


@pytest.mark.inductor
@pytest.mark.parametrize("options", [{}, {"keep_threshold": 0.4, "min_kept": 9}], ids=str)
def test_compiles_whole_with_dynamic_shapes(backend, device, options):
    def loss(function, x, target):
        return function(x * 2, target, **options)

    compiled = torch.compile(loss, fullgraph=True, dynamic=True)
    for shape, size in (((2, 5, 7, 9), (14, 18)), ((3, 6, 12, 8), (30, 20))):
        logits, target = operands(device, torch.float32, shape, size)
        leaf = logits.requires_grad_()
        out = compiled(attnops.upsample_cross_entropy, leaf, target)
        expected = loss(reference.upsample_cross_entropy, leaf, target)
        torch.testing.assert_close(out, expected)
        found, wanted = (torch.autograd.grad(y, leaf) for y in (out, expected))
        torch.testing.assert_close(found, wanted)


def test_exports(backend, device):
    class Loss(torch.nn.Module):
        def forward(self, logits, target):
            return attnops.upsample_cross_entropy(logits, target)

    inputs = operands(device, torch.float32, (2, 5, 7, 9), (14, 18))
    program = torch.export.export(Loss(), inputs)
    torch.testing.assert_close(program.module()(*inputs), Loss()(*inputs))


def test_autocast_gives_float32(backend, device):
    logits, target = operands(device, torch.bfloat16, *CASES[0])
    with torch.autocast(device.type, dtype=torch.bfloat16):
        loss = attnops.upsample_cross_entropy(logits, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, plain(target)(logits.float()))


def test_a_target_that_is_no_class_is_refused_with_its_value():
    logits, target = operands("cpu", torch.float32, *CASES[0])
    for value in (7, -1, 300):
        bad = target.clone()
        bad[1, 3, 4] = value
        with pytest.raises(ValueError, match=rf"target holds {value}.*0\.\.6.*ignore_index=255"):
            attnops.upsample_cross_entropy(logits, bad)


def test_a_target_that_is_no_class_gives_nan_where_it_is_not_checked(backend, device):
    logits, target = operands(device, torch.float32, *CASES[0])
    target[1, 3, 4] = 7
    function = torch.ops.attnops.upsample_cross_entropy
    loss, *_ = function(logits, target, None, 255, False, NONE, False)
    assert loss[1, 3, 4].isnan() and loss.isnan().sum() == 1
    assert function(logits, target, None, 255, False, SUM, False)[0].isnan()


@harness.bad_input(
    ({"logits": None}, TypeError, "logits must be a tensor, got NoneType"),
    ({"target": torch.ones(2, 8, 9)}, TypeError, "target has dtype torch.float32"),
    ({"target": torch.ones(2, 1, 8, 9).long()}, ValueError, r"target must be \[2, H, W\]"),
    ({"logits": torch.ones(4, 5, 6)}, ValueError, r"logits must be \[B, K, h, w\]"),
    ({"logits": torch.ones(2, 4, 0, 6)}, ValueError, "logits are empty"),
    ({"weight": torch.ones(3)}, ValueError, r"weight must be \[4\], got \[3\]"),
    ({"weight": torch.ones(4).int()}, TypeError, "weight must be a float tensor"),
    ({"reduction": "max"}, ValueError, "reduction must be .* got 'max'"),
    ({"ignore_index": None}, TypeError, "ignore_index must be an integer"),
    ({"keep_threshold": 0.7, "reduction": "sum"}, ValueError, "needs reduction='mean'"),
    ({"keep_threshold": "0.7"}, TypeError, "keep_threshold must be a number"),
    ({"min_kept": -1}, ValueError, "min_kept must not be negative, got -1"),
    ({"min_kept": 1.0}, TypeError, "min_kept must be an integer"),
)
def test_bad_input(change, error, message):
    arguments = {
        "logits": torch.ones(2, 4, 5, 6),
        "target": torch.ones(2, 8, 9, dtype=torch.long),
    }
    with pytest.raises(error, match=message):
        attnops.upsample_cross_entropy(**(arguments | change))
