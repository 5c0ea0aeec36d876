"""Precision and gradients of the reference implementations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def widened(x: Tensor | None) -> Tensor | None:
    """Half precision in float32, where the ops accumulate."""
    if x is None or x.dtype in (torch.float32, torch.float64):
        return x
    return x.float()


def as_leaves(*tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors, wide, as leaves of a new graph."""
    return [None if t is None else widened(t).detach().requires_grad_() for t in tensors]


def gradients_of(output: Tensor, inputs: Sequence[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    """Gradients of `output` with respect to `inputs`, for the gradient `grad` of it."""
    return torch.autograd.grad(output, inputs, grad)
