"""`nmf` in plain PyTorch."""

from __future__ import annotations

from torch import Tensor


def nmf(
    x: Tensor,
    bases: Tensor,
    steps: int = 6,
    inv_t: float = 1.0,
    eps: float = 1e-6,
    grad: str = "unrolled",
) -> tuple[Tensor, Tensor]:
    """The definition of `attnops.nmf`; every step in the dtype of its arguments."""
    constant = grad == "one_step"
    source, bases = (x.detach(), bases.detach()) if constant else (x, bases)
    coef = initial_coef(source, bases, inv_t)
    bases = bases.clone()
    for _ in range(steps):
        coef = update_coef(source, bases, coef, eps)
        bases = update_bases(source, bases, coef, eps)
    return bases, update_coef(x, bases, coef, eps)


def initial_coef(x: Tensor, bases: Tensor, inv_t: float) -> Tensor:
    """C = softmax over the bases of inv_t·Xᵀ·A, `[B, N, R]`."""
    return (inv_t * (x.mT @ bases)).softmax(dim=2)


def update_coef(x: Tensor, bases: Tensor, coef: Tensor, eps: float) -> Tensor:
    """C <- C ⊙ (Xᵀ·A) / (C·(Aᵀ·A) + eps)."""
    return coef * (x.mT @ bases) / (coef @ (bases.mT @ bases) + eps)


def update_bases(x: Tensor, bases: Tensor, coef: Tensor, eps: float) -> Tensor:
    """A <- A ⊙ (X·C) / (A·(Cᵀ·C) + eps)."""
    return bases * (x @ coef) / (bases @ (coef.mT @ coef) + eps)
