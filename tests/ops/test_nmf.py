"""`nmf` on every backend against the published updates in float64."""

from __future__ import annotations

import harness
import pytest
import torch
from draws import booleans, drawn, integers, one_of, shapes
from harness import DTYPES, check_op, skip_unsupported

import attnops
from attnops import reference

OP = "nmf"
GRADIENTS = ("unrolled", "one_step")
CASES = [  # B, D, N, R, steps
    (2, 7, 11, 3, 2),
    (1, 40, 65, 16, 6),
    (1, 33, 1, 5, 1),
    (3, 2, 9, 4, 3),
    (1, 20, 130, 64, 2),
    (1, 16, 30, 1, 7),
    (2, 9, 14, 6, 0),
]


def operands(device, dtype, batch, channels, positions, rank):
    x = torch.randn(batch, channels, positions).relu()
    bases = torch.nn.functional.normalize(torch.rand(batch, channels, rank), dim=1)
    return [t.to(device, dtype) for t in (x, bases)]


def eps_for(dtype):
    """Large enough that plain half precision, which sets the budget, does not divide by zero."""
    return 1e-2 if dtype in (torch.float16, torch.bfloat16) else 1e-6


def product(function, *options, **named):
    """The reconstruction, so that gradients of both outputs are asked for at once."""

    def call(x, bases):
        found, coef = function(x, bases, *options, **named)
        return (found.to(coef.dtype) @ coef.mT).to(x.dtype)

    return call


def output(index, function, *options, **named):
    return lambda x, bases: function(x, bases, *options, **named)[index]


def inner(x):
    """`x` with the channels of a position side by side."""
    return x.mT.contiguous().mT


def published(x, bases, steps, inv_t=1.0):
    """The released loop, in its association and order of operations."""
    coef = torch.softmax(inv_t * torch.bmm(x.transpose(1, 2), bases), dim=-1)

    def update_coef(bases, coef):
        numerator = torch.bmm(x.transpose(1, 2), bases)
        denominator = coef.bmm(bases.transpose(1, 2).bmm(bases))
        return coef * numerator / (denominator + 1e-6)

    for _ in range(steps):
        coef = update_coef(bases, coef)
        numerator = torch.bmm(x, coef)
        denominator = bases.bmm(coef.transpose(1, 2).bmm(coef))
        bases = bases * numerator / (denominator + 1e-6)
    return bases, update_coef(bases, coef)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_reference_is_the_published_loop(case):
    *shape, steps = case
    x, bases = operands("cpu", torch.float64, *shape)
    for found, wanted in zip(
        reference.nmf(x, bases, steps, 0.7), published(x, bases, steps, 0.7), strict=True
    ):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_float64(backend, device, case, dtype):
    skip_unsupported(backend, dtype, OP)
    *shape, steps = case
    x, bases = operands(device, dtype, *shape)
    options = (steps, 0.8, eps_for(dtype))
    for arranged in (x, inner(x)):
        for index in (0, 1) if steps else (1,):
            check_op(
                output(index, attnops.nmf, *options),
                output(index, reference.nmf, *options),
                [arranged, bases],
            )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_of_both_outputs_together(backend, device, case):
    *shape, steps = case
    inputs = operands(device, torch.float32, *shape)
    check_op(product(attnops.nmf, steps), product(reference.nmf, steps), inputs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_step_gradient(backend, device, case, dtype):
    skip_unsupported(backend, dtype, OP)
    *shape, steps = case
    options = (steps, 1.0, eps_for(dtype), "one_step")
    x, bases = operands(device, dtype, *shape)
    for arranged in (x, inner(x)):
        check_op(
            lambda x, b=bases: attnops.nmf(x, b, *options)[1],
            lambda x, b=bases: reference.nmf(x, b.to(x.dtype), *options)[1],
            [arranged],
        )


def test_one_step_gives_the_bases_no_gradient(backend, device):
    x, bases = (t.requires_grad_() for t in operands(device, torch.float32, 2, 7, 11, 3))
    found, coef = attnops.nmf(x, bases, 3, grad="one_step")
    through_coef = torch.autograd.grad(coef.sum(), [x, bases], allow_unused=True, retain_graph=True)
    assert through_coef[0].abs().sum() > 0
    assert through_coef[1] is None or not through_coef[1].any()
    through_bases = torch.autograd.grad(found.sum(), [x, bases], allow_unused=True)
    assert all(g is None or not g.any() for g in through_bases)


@drawn(
    30,
    shape=shapes(2, 70, 150, 64),
    steps=integers(0, 3),
    is_inner=booleans(),
    grad=one_of(GRADIENTS),
)
def test_any_shape(pytestconfig, shape, steps, is_inner, grad):
    torch.manual_seed(sum(shape))
    device = pytestconfig.getoption("--device")
    x, bases = operands(device, torch.float32, *shape)
    x = inner(x) if is_inner else x
    if grad == "unrolled":
        check_op(product(attnops.nmf, steps), product(reference.nmf, steps), [x, bases])
        return
    check_op(
        lambda x: attnops.nmf(x, bases, steps, grad=grad)[1],
        lambda x: reference.nmf(x, bases.to(x.dtype), steps, grad=grad)[1],
        [x],
    )


def test_strided_inputs_and_gradients(backend, device):
    x, bases = operands(device, torch.float32, 4, 14, 22, 6)
    inputs = [x[::2, ::2, ::2], bases[::2, ::2]]
    found = check_op(product(attnops.nmf, 2), product(reference.nmf, 2), inputs)
    leaves = [t.detach().requires_grad_() for t in inputs]
    _, coef = attnops.nmf(*leaves, 2)
    expanded = torch.autograd.grad(coef, leaves, torch.ones((), device=device).expand_as(coef))
    _, coef = attnops.nmf(*leaves, 2)
    dense = torch.autograd.grad(coef, leaves, torch.ones_like(coef))
    for a, b in zip(expanded, dense, strict=True):
        assert torch.equal(a, b)
    assert found[0].shape == (2, 7, 11)


def test_threads_do_not_matter(backend, device, threads):
    inputs = operands(device, torch.float32, 2, 40, 333, 16)
    check_op(product(attnops.nmf, 3), product(reference.nmf, 3), inputs)
    harness.check_runs_are_bit_equal(product(attnops.nmf, 3), inputs)


def test_no_steps_returns_a_copy_of_the_bases(backend, device):
    x, bases = operands(device, torch.float32, 1, 6, 10, 3)
    found, _ = attnops.nmf(x, bases, 0)
    assert torch.equal(found, bases)
    assert found.data_ptr() != bases.data_ptr()


def test_inputs_are_left_alone(backend, device):
    x, bases = operands(device, torch.float32, 1, 6, 10, 3)
    before = x.clone(), bases.clone()
    attnops.nmf(x, bases, 2)
    assert torch.equal(x, before[0]) and torch.equal(bases, before[1])


def test_the_reconstruction_gets_better(backend, device):
    x, bases = operands(device, torch.float32, 1, 20, 60, 8)
    errors = []
    for steps in (0, 1, 5, 20):
        found, coef = attnops.nmf(x, bases, steps)
        errors.append((x - found @ coef.mT).norm().item())
    assert errors == sorted(errors, reverse=True)


def test_nan_propagates_to_the_sample_alone(backend, device):
    x, bases = operands(device, torch.float32, 2, 6, 10, 3)
    x[0, 1, 2] = torch.nan
    found, coef = attnops.nmf(x, bases, 2)
    assert found[0].isnan().any() and coef[0].isnan().all()
    expected = reference.nmf(x, bases, 2)
    torch.testing.assert_close(found[1], expected[0][1])
    torch.testing.assert_close(coef[1], expected[1][1])


def test_large_scores_do_not_overflow(backend, device):
    x, bases = operands(device, torch.float32, 1, 6, 10, 3)
    found, coef = attnops.nmf(x * 1000, bases, 2, 10.0)
    assert found.isfinite().all() and coef.isfinite().all()


def test_empty_batch(backend, device):
    x, bases = (t.requires_grad_() for t in operands(device, torch.float32, 0, 6, 10, 3))
    found, coef = attnops.nmf(x, bases)
    assert found.shape == (0, 6, 3) and coef.shape == (0, 10, 3)
    (found.sum() + coef.sum()).backward()
    for leaf in (x, bases):
        assert torch.equal(leaf.grad, torch.zeros_like(leaf))


@pytest.mark.parametrize("grad", GRADIENTS)
@pytest.mark.parametrize("arrange", [lambda x: x, inner], ids=["contiguous", "inner"])
def test_opcheck(backend, device, arrange, grad):
    x, bases = operands(device, torch.float32, 2, 6, 10, 3)
    x = arrange(x).requires_grad_()
    one_step = grad == "one_step"
    arguments = (x, bases.requires_grad_(not one_step), 2, 1.0, 1e-6, one_step, 1 + (not one_step))
    torch.library.opcheck(torch.ops.attnops.nmf.default, arguments)


def test_gradcheck(backend, device):
    skip_unsupported(backend, torch.float64, OP)
    x, bases = operands(device, torch.float64, 1, 4, 5, 2)
    leaves = [(x + 0.1).requires_grad_(), bases.requires_grad_()]
    assert torch.autograd.gradcheck(lambda x, b: attnops.nmf(x, b, 2), leaves)


@pytest.mark.inductor
def test_compiles_whole_with_dynamic_shapes(backend, device):
    draws = [
        operands(device, torch.float32, 2, 6, 10, 3),
        operands(device, torch.float32, 3, 8, 21, 4),
    ]
    harness.check_compiles(product(attnops.nmf, 2), product(reference.nmf, 2), draws)


def test_exports_with_dynamic_shapes(backend, device):
    positions = torch.export.Dim("positions", min=2)
    harness.check_exports(
        product(attnops.nmf, 2),
        product(reference.nmf, 2),
        tuple(operands(device, torch.float32, 2, 6, 10, 3)),
        tuple(operands(device, torch.float32, 2, 6, 31, 3)),
        ({2: positions}, None),
    )


def test_autocast_keeps_float32(backend, device):
    x, bases = operands(device, torch.float32, 2, 6, 10, 3)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        found, coef = attnops.nmf(x.bfloat16(), bases)
    assert found.dtype == coef.dtype == torch.float32
    assert torch.equal(coef, attnops.nmf(x.bfloat16().float(), bases)[1])


@harness.bad_input(
    ({"x": None}, TypeError, "x must be a tensor, got NoneType"),
    ({"bases": torch.ones(2, 4, 3).int()}, TypeError, "bases has dtype torch.int32"),
    ({"bases": torch.ones(2, 4, 3).half()}, ValueError, "but bases is torch.float16"),
    ({"x": torch.ones(4, 5)}, ValueError, r"x must be \[B, D, N\]"),
    ({"bases": torch.ones(2, 5, 3)}, ValueError, r"bases must be \[2, 4, R\]"),
    ({"bases": torch.ones(1, 4, 3)}, ValueError, r"bases must be \[2, 4, R\]"),
    ({"bases": torch.ones(2, 4, 0)}, ValueError, "D, N and R must be at least 1"),
    ({"x": torch.ones(2, 4, 0)}, ValueError, "D, N and R must be at least 1"),
    ({"steps": -1}, ValueError, "steps must not be negative, got -1"),
    ({"steps": 1.5}, TypeError, "steps must be an integer, got 1.5"),
    ({"inv_t": None}, TypeError, "inv_t must be a number"),
    ({"grad": "two_step"}, ValueError, "grad must be 'unrolled' or 'one_step'"),
)
def test_bad_input(change, error, message):
    arguments = {"x": torch.ones(2, 4, 5), "bases": torch.ones(2, 4, 3)}
    with pytest.raises(error, match=message):
        attnops.nmf(**(arguments | change))
