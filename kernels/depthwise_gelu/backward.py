"""Triton backward of depthwise_gelu.

The convolution z is computed again, and one map is kept, in float32: dz = grad * gelu'(z). dx is
its transposed convolution; dweight and dbias are partial sums, added in order.
"""

from __future__ import annotations

import torch

from ..._layout import empty_map, is_channels_inner
from .._depthwise import TapSums, by_tap, convolve, launch_of
from .._launch import on_device
from .forward import run_gelu


def backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """dx like x, dweight like weight, dbias [C]."""
    kernel_size = weight.shape[2:]
    count = kernel_size[0] * kernel_size[1]
    launch = launch_of(x)
    dx = empty_map(x.shape, x, is_channels_inner(x))
    dz = torch.empty_like(x, dtype=torch.float32)
    with on_device(grad, x) as (grad, x):
        run_gelu(x, weight, bias, grad, dz)
        convolve(dz, dx, by_tap(weight), None, kernel_size, True, launch)
        sums = TapSums(x, count + 1, launch)
        sums.add(dz, x, kernel_size, 0, count)
        totals = sums.totals(x.dtype)
    dweight = totals[:, :count].contiguous().view(weight.shape)
    return dx, dweight, totals[:, count].contiguous()
