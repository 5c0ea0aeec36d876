"""Targets of every integer dtype, label smoothing and averages of `upsample_cross_entropy`."""

from __future__ import annotations

import pytest
import torch
from harness import check_op, skip_unsupported
from torch.nn.functional import cross_entropy, interpolate

import attnops
from attnops import reference

OP = "upsample_cross_entropy"
INTEGERS = [
    torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint64, torch.uint32, torch.uint16, torch.uint8, torch.bool,
]  # fmt: skip
OPTIONS = [
    {},
    {"reduction": "sum"},
    {"reduction": "none"},
    {"keep_threshold": 0.6, "min_kept": 40},
    {"label_smoothing": 0.1},
    {"avg_non_ignore": False},
]
FUNCTIONS = [attnops.upsample_cross_entropy, reference.upsample_cross_entropy]


def operands(classes=6, dtype=torch.float32, ignored=0.3):
    logits = (2 * torch.randn(2, classes, 4, 5)).to(dtype)
    target = torch.randint(classes, (2, 13, 11))
    target[torch.rand(target.shape) < ignored] = 255
    return logits, target


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_every_integer_dtype(backend, dtype, options):
    classes = 2 if dtype == torch.bool else 6
    ignore_index = {torch.bool: -1, torch.int8: 127}.get(dtype, 255)
    logits, target = operands(classes, ignored=0 if dtype == torch.bool else 0.3)
    target[target == 255] = ignore_index
    weight = torch.rand(classes) + 0.1
    for function in FUNCTIONS:
        expected = function(logits, target, weight, ignore_index, **options)
        found = function(logits, target.to(dtype), weight, ignore_index, **options)
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "ignore_index", [-100, -1, 255, 300, 2**32, 2**32 + 3, -(2**31) - 1, 2**64]
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32, torch.uint64], ids=str)
def test_an_ignored_label_beyond_the_dtype_matches_nothing(backend, dtype, ignore_index):
    """No label is compared wrapped: 156 is not -100, and 3 is not 2^32 + 3."""
    logits = torch.zeros(1, 400, 2, 2)
    values = [[[156, 255], [3, 44]]]
    target = torch.tensor(values).to(dtype)
    kept = torch.tensor([[[value != ignore_index for value in row] for row in values[0]]])
    for function in FUNCTIONS:
        found = function(logits, target, ignore_index=ignore_index, reduction="none")
        expected = torch.where(kept, torch.tensor(400.0).log(), 0)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("dtype", "ignore_index"),
    [
        (torch.int64, 2**32 + 3),
        (torch.int64, -(2**63)),
        (torch.int64, 2**63 - 1),
        (torch.uint64, 2**40),
        (torch.uint32, 2**32 - 1),
        (torch.int32, -(2**31)),
    ],
    ids=str,
)
def test_wide_labels_are_ignored_where_they_are_that_label(backend, dtype, ignore_index):
    logits, target = operands()
    wide = torch.where(target == 255, ignore_index, target).to(dtype)
    for function in FUNCTIONS:
        found = function(logits, wide, ignore_index=ignore_index)
        assert torch.equal(found, function(logits, target))


def test_an_ignored_label_from_2_to_the_63_on(backend):
    logits, target = operands()
    wide = torch.where(target == 255, -1, target).view(torch.uint64)
    for function in FUNCTIONS:
        found = function(logits, wide, ignore_index=2**64 - 1)
        assert torch.equal(found, function(logits, target))


def test_issue_of_a_wrapped_label():
    logits = torch.zeros(1, 160, 2, 2)
    target = torch.full((1, 2, 2), 156, dtype=torch.uint8)
    target[0, 0, 0] = 3
    found = attnops.upsample_cross_entropy(logits, target, ignore_index=-100)
    torch.testing.assert_close(found, torch.tensor(160.0).log())


@pytest.mark.parametrize(
    ("dtype", "value", "ignore_index", "shown"),
    [
        (torch.uint8, 200, 255, "200"),
        (torch.int8, -1, 255, "-1"),
        (torch.uint8, 255, -1, "255"),
        (torch.int32, 6, 2**32 + 6, "6"),
        (torch.int64, -1, 2**64 - 1, "-1"),
        (torch.uint64, -1, -1, str(2**64 - 1)),
        (torch.uint64, -1, 255, str(2**64 - 1)),
    ],
)
def test_labels_that_are_no_class_are_refused(dtype, value, ignore_index, shown):
    logits, _ = operands()
    target = torch.zeros(2, 13, 11, dtype=torch.long)
    target[1, 3, 4] = value
    target = target.view(torch.uint64) if dtype == torch.uint64 else target.to(dtype)
    with pytest.raises(ValueError, match=rf"target holds {shown}, which is neither a class"):
        attnops.upsample_cross_entropy(logits, target, ignore_index=ignore_index)


def test_losses_of_networks_take_any_integer_dtype():
    model = attnops.models.create_model("segnext_t", num_classes=3).eval()
    target = torch.randint(3, (1, 64, 64))
    target[:, :9] = 255
    outputs = model(torch.rand(1, 3, 64, 64))
    expected = model.loss(outputs, target)
    for dtype in (torch.uint8, torch.int32, torch.uint16):
        assert torch.equal(model.loss(outputs, target.to(dtype)), expected)


@pytest.mark.parametrize("align_corners", [False, True], ids=["", "aligned"])
@pytest.mark.parametrize("with_weight", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("label_smoothing", [0.1, 1.0])
def test_label_smoothing_is_pytorchs(
    backend, label_smoothing, reduction, with_weight, align_corners
):
    dtype = torch.float32 if backend == "triton" else torch.float64
    logits, target = operands(dtype=dtype)
    weight = torch.rand(6, dtype=dtype) if with_weight else None
    leaf = logits.requires_grad_()
    full = interpolate(leaf, target.shape[1:], mode="bilinear", align_corners=align_corners)
    options = {"reduction": reduction, "label_smoothing": label_smoothing}
    expected = cross_entropy(full, target, weight, ignore_index=255, **options)
    grad = torch.rand_like(expected)
    (wanted,) = torch.autograd.grad(expected, leaf, grad)
    for function in FUNCTIONS:
        found = function(leaf, target, weight, align_corners=align_corners, **options)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad(found, leaf, grad), (wanted,))


@pytest.mark.parametrize(
    "options", [{}, {"avg_non_ignore": False}, {"keep_threshold": 0.5}], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_smoothed_losses_within_the_budget(backend, dtype, options):
    logits, target = operands(dtype=dtype)
    options = {"label_smoothing": 0.2, **options}
    inputs = [logits, (torch.rand(6) + 0.1).to(dtype)]

    def smoothed(function):
        return lambda x, w: function(x, target, w, **options)

    check_op(*map(smoothed, FUNCTIONS), inputs)


def test_gradcheck_with_smoothing(backend):
    skip_unsupported(backend, torch.float64)
    logits, target = operands(4, torch.float64)
    weight = torch.rand(4, dtype=torch.float64) + 0.1

    def loss(x, w):
        return attnops.upsample_cross_entropy(
            x, target[:, :4, :5] % 4, w, label_smoothing=0.3, reduction="none"
        )

    leaves = [logits[:, :, :2, :2].requires_grad_(), weight.requires_grad_()]
    assert torch.autograd.gradcheck(loss, leaves)


def test_smoothing_with_a_class_at_minus_infinity(backend):
    """Without smoothing it has no part in the losses; with it, they are infinite."""
    logits, target = operands()
    logits[:, 5] = -torch.inf
    target[target == 5] = 0
    options = {"reduction": "none", "align_corners": True}
    plain = attnops.upsample_cross_entropy(logits, target, **options)
    assert plain.isfinite().all()
    smoothed = attnops.upsample_cross_entropy(logits, target, label_smoothing=0.1, **options)
    assert torch.equal(smoothed == torch.inf, target != 255)


@pytest.mark.parametrize("with_weight", [False, True], ids=["", "weighted"])
def test_average_over_all_pixels(backend, with_weight):
    """As mmsegmentation: losses of all pixels, ignored ones 0, and their plain mean."""
    logits, target = operands(ignored=0.5)
    weight = torch.rand(6) if with_weight else None
    full = interpolate(logits, target.shape[1:], mode="bilinear")
    losses = cross_entropy(full, target, weight, ignore_index=255, reduction="none")
    for function in FUNCTIONS:
        found = function(logits, target, weight, avg_non_ignore=False)
        torch.testing.assert_close(found, losses.mean())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_nothing_valid(backend, smoothing):
    logits, target = operands()
    leaf = logits.requires_grad_()
    ignored = torch.full_like(target, 255)
    options = {"label_smoothing": smoothing}
    for function in FUNCTIONS:
        assert function(leaf, ignored, **options).isnan()
        loss = function(leaf, ignored, avg_non_ignore=False, **options)
        (grad,) = torch.autograd.grad(loss, leaf)
        assert loss == 0 and torch.equal(grad, torch.zeros_like(grad))


@pytest.mark.parametrize("with_weight", [False, True], ids=["", "weighted"])
def test_accumulated_gradients_are_those_of_the_whole_batch(backend, with_weight):
    """With uneven ignored pixels, of which the mean of means knows nothing."""
    logits, target = operands()
    target[1, :12] = 255
    weight = torch.rand(6) if with_weight else None
    leaf = logits.requires_grad_()
    expected = cross_entropy(
        interpolate(leaf, target.shape[1:], mode="bilinear"), target, weight, ignore_index=255
    )
    (wanted,) = torch.autograd.grad(expected, leaf)
    total = attnops.valid_weight(target, weight)
    parts = [
        attnops.upsample_cross_entropy(x, t, weight, reduction="sum") / total
        for x, t in zip(leaf.split(1), target.split(1), strict=True)
    ]
    torch.testing.assert_close(sum(parts), expected)
    torch.testing.assert_close(torch.autograd.grad(sum(parts), leaf), (wanted,))


def test_valid_weight():
    target = torch.tensor([[[0, 1, 2, 255]]])
    weight = torch.tensor([0.5, 2.0, 0.25])
    assert attnops.valid_weight(target) == 3
    assert attnops.valid_weight(target, weight) == 2.75
    assert attnops.valid_weight(target.to(torch.uint8), weight, ignore_index=-1) == 3.0
    assert attnops.valid_weight(target, weight, ignore_index=1) == 1.0
    with pytest.raises(TypeError, match="valid_weight: target has dtype"):
        attnops.valid_weight(target.float())
    with pytest.raises(TypeError, match="valid_weight: weight must be a float tensor"):
        attnops.valid_weight(target, weight.int())


@pytest.mark.inductor
def test_compiles_whole(backend):
    def loss(x, target):
        return attnops.upsample_cross_entropy(x * 2, target, ignore_index=-1, label_smoothing=0.1)

    logits, target = operands()
    target[target == 255] = 0
    leaf = logits.requires_grad_()
    compiled = torch.compile(loss, fullgraph=True)
    found, expected = compiled(leaf, target.to(torch.uint8)), loss(leaf, target)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(y, leaf) for y in (found, expected)))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"label_smoothing": 1.5}, ValueError, r"label_smoothing must be in 0\.\.1, got 1\.5"),
        ({"label_smoothing": -0.1}, ValueError, "label_smoothing must be in 0..1"),
        ({"label_smoothing": float("nan")}, ValueError, "label_smoothing must be in 0..1"),
        ({"label_smoothing": "0.1"}, TypeError, "label_smoothing must be a number"),
        ({"avg_non_ignore": 1}, TypeError, "avg_non_ignore must be True or False"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        attnops.upsample_cross_entropy(*operands(), **options)
