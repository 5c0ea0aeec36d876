"""Resizing reads no neighbour of weight zero: every op that resizes, on every backend, forward and
backward, against sums over the neighbours with a share, whose weights are exact fractions.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import pytest
import torch
from harness import in_layout
from torch.nn.functional import cross_entropy

import attnops
from attnops import reference
from attnops.reference._resize import resize

OP = "upsample_gate"  # the backends of every op that resizes

# (h, w), (H, W), align_corners: scales that float32 holds, so that weights are 0 in every dtype.
CASES = [
    ((3, 5), (3, 5), False),
    ((3, 5), (3, 5), True),
    ((3, 5), (5, 9), True),
    ((3, 5), (12, 10), False),
    ((4, 3), (2, 3), False),
    ((1, 3), (4, 17), True),
]
VALUES = [-torch.inf, torch.inf, torch.nan]
# Values, and whether they stand in the incoming gradient instead of in the small map.
POISONS = [*((value, False) for value in VALUES), (torch.inf, True)]


def weights(inputs, outputs, align_corners):
    """[outputs, inputs], float64."""
    found = torch.zeros(outputs, inputs, dtype=torch.float64)
    for i in range(outputs):
        if align_corners:
            position = Fraction(i * (inputs - 1), max(outputs - 1, 1))
        else:
            position = max(Fraction(2 * i + 1, 2) * Fraction(inputs, outputs) - Fraction(1, 2), 0)
        first = min(int(position), inputs - 1)
        share = float(position - first)
        found[i, first] += 1 - share
        found[i, min(first + 1, inputs - 1)] += share
    return found


def exact_resize(x, size, align_corners):
    """[B, K, H, W] of x [B, K, h, w]: the sum over all inputs whose weight is not 0."""
    rows, columns = (weights(x.shape[2 + i], size[i], align_corners) for i in range(2))
    share = rows[:, None, :, None] * columns[None, :, None, :]
    return torch.where(share == 0, 0, share * x[:, :, None, None]).sum(dim=(4, 5))


def poisoned(shape, value, places):
    """Random, with `value` at some places (class, row, column)."""
    x = torch.randn(shape)
    for place in places:
        x[(0, *place)] = value
    return x


def places(shape):
    """Corners, an edge and the middle, of different classes."""
    _, classes, height, width = shape
    spots = [(0, 0), (height - 1, width - 1), (height // 2, width // 2), (0, width - 1)]
    return [(k % classes, *spot) for k, spot in enumerate(spots)]


def check(function, oracle, inputs, grad, layout="contiguous"):
    """Output and gradients of float32 against the float64 oracle; what is not finite, exactly."""
    leaves = [in_layout(x, layout).requires_grad_() for x in inputs]
    wide = [x.double().requires_grad_() for x in inputs]
    out, expected = function(*leaves), oracle(*wide)
    torch.testing.assert_close(
        out.double(), expected, rtol=1e-4, atol=1e-5, equal_nan=True, check_stride=False
    )
    found = torch.autograd.grad(out, leaves, grad)
    wanted = torch.autograd.grad(expected, wide, grad.double())
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_definition(case):
    small, size, align_corners = case
    for value in VALUES:
        check_definition(small, size, align_corners, value)


def check_definition(small, size, align_corners, value):
    x = poisoned((1, 3, *small), value, places((1, 3, *small)))
    grad = poisoned((1, 3, *size), value, places((1, 3, *size)))
    check(
        lambda x: resize(x, size, align_corners),
        lambda x: exact_resize(x, size, align_corners),
        [x],
        grad,
    )
    if small == size:
        torch.testing.assert_close(
            resize(x, size, align_corners), x, rtol=0, atol=0, equal_nan=True
        )


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_labels(backend, case, layout):
    small, size, align_corners = case
    for classes, value in product((2, 19), VALUES):
        shape = (1, classes, *small)
        logits = in_layout(poisoned(shape, value, places(shape)), layout)
        expected = exact_resize(logits.double(), size, align_corners).argmax(dim=1)
        assert torch.equal(attnops.upsample_argmax(logits, size, align_corners), expected)
        assert torch.equal(reference.upsample_argmax(logits, size, align_corners), expected)


@pytest.mark.parametrize("align_corners", [False, True], ids=["", "aligned"])
def test_a_class_at_minus_infinity_loses(backend, align_corners):
    """At equal size everywhere, and where it has no share in a pixel."""
    logits = torch.randn(1, 3, 6, 7)
    logits[:, 1] = -torch.inf
    labels = attnops.upsample_argmax(logits, (6, 7), align_corners)
    assert torch.equal(labels, logits.argmax(dim=1)) and not (labels == 1).any()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_losses(backend, case, layout):
    small, size, align_corners = case
    shape = (1, 5, *small)
    target = torch.randint(5, (1, *size))
    target[0, 0, -1] = 255

    def oracle(x):
        full = exact_resize(x, size, align_corners)
        full = torch.where((target == 255).unsqueeze(1), 0, full)
        return cross_entropy(full, target, ignore_index=255, reduction="none")

    options = {"align_corners": align_corners, "reduction": "none"}
    grad = torch.rand(1, *size)
    functions = (attnops.upsample_cross_entropy, reference.upsample_cross_entropy)
    for function, value in product(functions, VALUES):
        logits = poisoned(shape, value, places(shape))
        check(lambda x, f=function: f(x, target, **options), oracle, [logits], grad, layout)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("activation", ["identity", "relu", "sigmoid"])
@pytest.mark.parametrize("first", [False, True], ids=["", "first"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gates(backend, case, first, activation, layout):
    small, size, align_corners = case
    activate = {"identity": lambda z: z, "relu": torch.relu, "sigmoid": torch.sigmoid}[activation]

    def oracle(x, logits):
        gate = exact_resize(activate(logits) if first else logits, size, align_corners)
        return (gate if first else activate(gate)) * x

    def function(x, logits):
        return attnops.upsample_gate(logits, x, activation, first, "none", 1.0, align_corners)

    shape, full = (1, 5, *small), (1, 5, *size)
    for value, in_grad in POISONS:
        logits = poisoned(shape, value, [] if in_grad else places(shape))
        grad = poisoned(full, value, places(full) if in_grad else [])
        check(function, oracle, [torch.randn(full), logits], grad, layout)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("reduce", ["attention", "mean", "max"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_merged_maps(backend, case, reduce, layout):
    small, size, align_corners = case
    shape, full = (1, 5, *small), (1, 5, *size)

    def oracle(first, second, logits):
        maps = [exact_resize(x, size, align_corners) for x in (first, second)]
        if reduce == "attention":
            return (logits.softmax(1).transpose(0, 1).unsqueeze(2) * torch.stack(maps)).sum(0)
        stacked = torch.stack(maps)
        merged = stacked.mean(0) if reduce == "mean" else stacked.max(0).values
        return merged + 0 * logits.sum()

    def function(first, second, logits):
        out = attnops.merge_scales([first, second], logits, reduce, align_corners)
        return out if reduce == "attention" else out + 0 * logits.sum()

    for value, in_grad in POISONS:
        first = poisoned(shape, value, [] if in_grad else places(shape))
        grad = poisoned(full, value, places(full)[:2] if in_grad else [])
        inputs = [first, torch.randn(full), torch.randn(1, 2, *size)]
        check(function, oracle, inputs, grad, layout)
