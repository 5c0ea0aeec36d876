"""Triton backward of group_attention, by the kernels of the forward.

Source: Yue et al., Compact Generalized Non-local Network (NeurIPS 2018), eq. (8).
"""

from __future__ import annotations

import torch

from ..._layout import empty_map, is_channels_inner
from .._launch import on_device
from .forward import groups_of


def backward(
    grad: torch.Tensor,
    theta: torch.Tensor,
    phi: torch.Tensor,
    g: torch.Tensor,
    affinity: torch.Tensor,
    groups: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """dtheta, dphi, dg, like theta."""
    layout = groups_of(theta, groups)
    inner = is_channels_inner(theta)
    dtheta, dphi, dg = (empty_map(theta.shape, theta, inner) for _ in range(3))
    with on_device(grad, theta, phi, g) as (grad, theta, phi, g):
        partial = layout.dot(grad, theta, affinity, dtheta)
        layout.scale(partial, g, phi, dphi, dg)
    return dtheta, dphi, dg
