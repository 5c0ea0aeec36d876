"""Triton backward of depthwise_gelu: the convolution again, dz, then the rest from dz."""

from __future__ import annotations

import torch

from . import general, three


def backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """dx like x, dweight like weight, dbias [C]."""
    way = three if tuple(weight.shape[2:]) == (3, 3) else general
    return way.backward(grad, x, weight, bias)
