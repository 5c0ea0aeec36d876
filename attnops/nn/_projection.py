"""The projections of the attention blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .functional import (
    BATCH_NORMS,
    convolve,
    fold_batch_norm,
    has_fixed_statistics,
    is_pointwise,
    pointwise,
    runs_as_built,
)

FORMS = ("bn_relu", "linear")


class Projection(nn.Module):
    """A biased 1x1 convolution, followed by BatchNorm and ReLU in the form "bn_relu".

    In evaluation the BatchNorm is folded into the convolution, so the map is written once.

    Args:
        in_channels: channels of the input map.
        out_channels: channels of the output map.
        form: "bn_relu" or "linear".
    """

    def __init__(self, in_channels: int, out_channels: int, form: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1)
        self.bn = nn.BatchNorm2d(out_channels) if form == "bn_relu" else None

    def forward(self, x: Tensor) -> Tensor:
        conv, bn = self.conv, self.bn
        if has_fixed_statistics(bn) and is_pointwise(conv):
            shift, factor = fold_batch_norm(conv.bias, bn)
            return torch.relu_(pointwise(x, conv.weight, shift, factor, lean=True))
        out = convolve(conv, x, lean=True)
        if bn is None:
            return out
        out = bn(out)  # which a hook on it may keep
        return torch.relu_(out) if runs_as_built(bn, *BATCH_NORMS) else torch.relu(out)


def linear_convolution(projection: nn.Module | None) -> nn.Conv2d | None:
    """The 1x1 convolution that `projection` is; None if it is more, or something has to be called
    for it.
    """
    if (
        runs_as_built(projection, Projection)
        and projection.bn is None
        and is_pointwise(projection.conv)
    ):
        return projection.conv
    return None
