"""Non-negative matrix factorisation by multiplicative updates (the Hamburger's NMF)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._checks import cast_and_check, check_choice, check_integer, check_number, check_shape
from ._layout import dense, empty_map, is_channels_inner, statistics_dtype
from ._op import Direction, Op
from ._op.overridable import overridable

NAME = "nmf"
GRADIENTS = ("unrolled", "one_step")
# What the forward keeps for the backward in past_bases and past_coef, as implementations get it:
# nothing, the final bases and the coefficients before their last update, or the bases after every
# step and all coefficients from the softmax to the result.
RECORD_NOTHING, RECORD_LAST, RECORD_ALL = range(3)


@overridable
def nmf(
    x: Tensor,
    bases: Tensor,
    steps: int = 6,
    inv_t: float = 1.0,
    eps: float = 1e-6,
    grad: str = "unrolled",
) -> tuple[Tensor, Tensor]:
    """Factorise X ≈ A·Cᵀ with multiplicative updates, all steps in one op.

    C = softmax over the R bases of inv_t·Xᵀ·A; `steps` times C <- C ⊙ (Xᵀ·A) / (C·AᵀA + eps) and
    then A <- A ⊙ (X·C) / (A·CᵀC + eps); one more update of C.

    Source: Geng et al., Is Attention Better Than Matrix Decomposition? (ICLR 2021), algorithm 1
    and section 3.3 (one-step gradient), in the order that SegNeXt's code runs.

    Args:
        x: X `[B, D, N]`, elements >= 0; contiguous, or the transpose of a contiguous `[B, N, D]`.
        bases: A `[B, D, R]`, elements >= 0.
        steps: number of updates of the bases; 0 is legal.
        inv_t: inverse temperature of the softmax.
        eps: added to the denominators.
        grad: "unrolled" differentiates through every update, with the bases and coefficients of
            each step kept in float32; "one_step" through the last update of C alone: the final
            bases and the coefficients before it are constants, `bases` gets no gradient, nor does
            anything through the returned bases.

    Returns:
        A `[B, D, R]`, fresh, and C `[B, N, R]`, in the dtype of `x`. Half precision is computed in
        float32 throughout. Under autocast the arguments are cast to float32, for sums over N
        positions leave the range of float16.

    Raises:
        TypeError: an argument is not a float tensor, or an option has the wrong type.
        ValueError: shapes, dtypes or devices that do not match, an empty axis other than the
            batch, negative steps, an unknown `grad`.

    Example:
        >>> import torch, attnops
        >>> x, bases = torch.rand(1, 64, 100), torch.rand(1, 64, 8)
        >>> bases, coef = attnops.nmf(x, bases)
        >>> (bases @ coef.mT).shape
        torch.Size([1, 64, 100])
    """
    steps = check_integer(NAME, "steps", steps, least=0)
    inv_t, eps = check_number(NAME, "inv_t", inv_t), check_number(NAME, "eps", eps)
    check_choice(NAME, "grad", grad, GRADIENTS)
    x, bases = cast_and_check(NAME, {"x": x, "bases": bases}, autocast_to=torch.float32)
    check_shape(NAME, "x", x, ("B", "D", "N"))
    batch, channels, positions = x.shape
    check_shape(NAME, "bases", bases, (batch, channels, "R"))
    if channels == 0 or positions == 0 or bases.shape[2] == 0:
        raise ValueError(
            f"{NAME}: D, N and R must be at least 1, got D={channels}, N={positions}, "
            f"R={bases.shape[2]}"
        )
    one_step = grad == "one_step"
    record = RECORD_NOTHING
    if torch.is_grad_enabled() and (x.requires_grad or (bases.requires_grad and not one_step)):
        record = RECORD_LAST if one_step else RECORD_ALL
    found, coef, *_ = _op(x, bases, steps, inv_t, eps, one_step, record)
    return found, coef


def _fake(
    x: Tensor, bases: Tensor, steps: int, inv_t: float, eps: float, one_step: bool, record: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, channels, positions = x.shape
    rank, dtype = bases.shape[2], statistics_dtype(x)
    past_bases = past_coef = (0,)
    if record != RECORD_NOTHING:
        kept_bases, kept_coef = (steps, steps + 2) if record == RECORD_ALL else (1, 1)
        past_bases = (kept_bases, batch, channels, rank)
        past_coef = (kept_coef, batch, positions, rank)
    return (
        bases.new_empty(bases.shape),
        bases.new_empty((batch, positions, rank)),
        bases.new_empty(past_bases, dtype=dtype),
        bases.new_empty(past_coef, dtype=dtype),
    )


def _backward_fake(
    x: Tensor, bases: Tensor, grad_bases: Tensor | None, grad_coef: Tensor | None, *args: Any
) -> tuple[Tensor, Tensor]:
    return empty_map(x.shape, x, is_channels_inner(x)), bases.new_empty(bases.shape)


def _prepare(x: Tensor, bases: Tensor, *options: Any) -> tuple[Any, ...]:
    return dense(x), bases.contiguous(), *options


def _prepare_backward(x: Tensor, *args: Any) -> tuple[Any, ...]:
    tensors, options = args[:5], args[5:]  # bases, gradients of bases and coefficients, the past
    return dense(x), *(None if t is None else t.contiguous() for t in tensors), *options


def _forward_arguments(x: Tensor, bases: Tensor, *args: Any) -> tuple[Any, ...]:
    _, _, past_bases, _, *options = args
    one_step = options[-1]  # whose gradient is that of the last update alone
    steps, record = (0, RECORD_LAST) if one_step else (past_bases.shape[0], RECORD_ALL)
    return x, bases, steps, *options, record


def _setup(inputs: tuple[Any, ...], outputs: list[Tensor]) -> tuple[tuple, tuple]:
    x, bases, _, inv_t, eps, one_step, _ = inputs
    return (x, bases, *outputs[2:]), (inv_t, eps, one_step)


def _gradient(
    grads: tuple[Tensor | None, ...], saved: list[Tensor], kept: tuple, call: Callable[..., Any]
) -> tuple[Tensor | None, ...]:
    inv_t, eps, one_step = kept
    grad_bases, grad_coef = grads[:2]
    if one_step:
        grad_bases = None
    if grad_bases is None and grad_coef is None:
        return ()
    x, bases, past_bases, past_coef = saved
    grad_x, grad_initial = call(
        x, bases, grad_bases, grad_coef, past_bases, past_coef, inv_t, eps, one_step
    )
    return grad_x, None if one_step else grad_initial


_op = Op(
    NAME,
    Direction(
        "(Tensor x, Tensor bases, int steps, float inv_t, float eps, bool one_step, int record)"
        " -> (Tensor, Tensor, Tensor, Tensor)",
        _fake,
        _prepare,
    ),
    Direction(
        "(Tensor x, Tensor bases, Tensor? grad_bases, Tensor? grad_coef, Tensor past_bases,"
        " Tensor past_coef, float inv_t, float eps, bool one_step) -> (Tensor, Tensor)",
        _backward_fake,
        _prepare_backward,
    ),
    setup=_setup,
    gradient=_gradient,
    forward_arguments=_forward_arguments,
)
