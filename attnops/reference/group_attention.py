"""`group_attention` in plain PyTorch."""

from __future__ import annotations

from torch import Tensor


def group_attention(theta: Tensor, phi: Tensor, g: Tensor, groups: int) -> Tensor:
    """The definition of `attnops.group_attention`; every step in the dtype of its arguments."""
    affinity = group_affinity(phi, g, groups)[:, :, None, None, None]
    return (affinity * theta.unflatten(1, (groups, -1))).flatten(1, 2)


def group_affinity(phi: Tensor, g: Tensor, groups: int) -> Tensor:
    """One scalar a sample and group, `[B, groups]`: the inner product of phi and g."""
    return (phi * g).unflatten(1, (groups, -1)).sum(dim=(2, 3, 4))
