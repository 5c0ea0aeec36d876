"""LayerNorm and GroupNorm as sums that a compiler makes fast loops of.

Inductor computes the variance of either by Welford's recurrence, in which every value waits for a
quotient of the one before it; and of a GroupNorm group by group, a few of the channels that lie
side by side at a time. Here the deviations from a mean are squared and summed: for a LayerNorm
those of a position, for a GroupNorm those of a row from the row's own mean, all channels at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def layer_norm(
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn: bool = True,
) -> Tensor:
    """`aten.layer_norm`."""
    axes = list(range(-len(shape), 0))
    wide = x.float()
    deviation = wide - wide.mean(axes, keepdim=True)
    out = deviation * torch.rsqrt(deviation.square().mean(axes, keepdim=True) + eps)
    if weight is not None:
        out = out * weight
    if bias is not None:
        out = out + bias
    return out.to(x.dtype)


def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn: bool = True,
) -> Tensor:
    """`aten.group_norm` of maps `[B, C, H, W]`; others are left as they are.

    With the mean m_r of a row of W values, the sum of (x - m)² over the rows is that of (x - m_r)²
    and W·(m_r - m)²: rows make channels in this way, and channels of one size make groups.
    """
    if x.dim() != 4:
        return NotImplemented
    wide = x.float()
    of_rows = wide.mean(3)  # [B, C, H]
    within_rows = (wide - of_rows[..., None]).square().mean(3)
    of_channels = of_rows.mean(2)  # [B, C]
    spread = (of_rows - of_channels[..., None]).square()
    within_channels = (within_rows + spread).mean(2).unflatten(1, (groups, -1))  # [B, G, C/G]
    of_channels = of_channels.unflatten(1, (groups, -1))
    mean = of_channels.mean(2, keepdim=True)  # [B, G, 1]
    variance = (within_channels + (of_channels - mean).square()).mean(2, keepdim=True)
    factor = torch.rsqrt(variance + eps).expand_as(of_channels)
    if weight is not None:
        factor = factor * weight.unflatten(0, (groups, -1))
    factor = _stored(factor)
    shift = -mean * factor.unflatten(1, (groups, -1))
    if bias is not None:
        shift = shift + bias.unflatten(0, (groups, -1))
    return (wide * factor[..., None, None] + _stored(shift)[..., None, None]).to(x.dtype)


def _stored(x: Tensor) -> Tensor:
    """`[B, G, C/G]` as `[B, C]`, in memory: else a compiler computes it again for every position,
    one channel at a time.
    """
    batch, channels = x.shape[0], x.shape[1] * x.shape[2]
    return x.contiguous().as_strided((batch, channels), (channels, 1))


NORMS = {
    torch.ops.aten.layer_norm.default: layer_norm,
    torch.ops.aten.group_norm.default: group_norm,
}
