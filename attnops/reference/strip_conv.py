"""`strip_conv` in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import conv2d

Convolution = tuple[Tensor, Tensor | None]


def strip_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    strips: Sequence[tuple[Convolution, Convolution]],
) -> Tensor:
    """The definition of `attnops.strip_conv`: separate convolutions, each zero-padded; every step
    in the dtype of its arguments.
    """
    local = depthwise(x, weight, bias)
    out = local
    for horizontal, vertical in strips:
        out = out + depthwise(depthwise(local, *horizontal), *vertical)
    return out


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Depthwise convolution with weight `[C, 1, kh, kw]`, zero-padded to the size of `x`."""
    padding = tuple(k // 2 for k in weight.shape[2:])
    return conv2d(x, weight, bias, padding=padding, groups=x.shape[1])
