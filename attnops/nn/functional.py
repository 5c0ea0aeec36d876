"""What networks need from attnops.nn beyond its modules.

- Children: `runs_as_built`, `is_pointwise` and `is_depthwise` say whether a child may be passed by,
  its weights used in an op; `convolve` does so for 1x1 convolutions, `convolve_joined` for those
  of several maps. Networks that stick to these keep working with hooks, pruning, adapters and
  whatever else users do to the parts of a model.
- 1x1 convolutions as products: `pointwise`, `apply_to_anchors`, `as_matrix`, `scale_outputs`, and
  `folding_saves`, which says whether moving one to the anchors pays.
- BatchNorm as an affine map: `has_fixed_statistics`, `fold_batch_norm`.
- `conv_bn_relu`, `without_autocast`, and the layouts of maps: `is_channels_inner`, `dense`,
  `map_of_tokens`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from .._layout import dense, is_channels_inner
from ._children import (
    BATCH_NORMS,
    convolve,
    convolve_joined,
    fold_batch_norm,
    has_fixed_statistics,
    is_depthwise,
    is_pointwise,
    runs_as_built,
)
from ._pointwise import apply_to_anchors, as_matrix, folding_saves, pointwise, scale_outputs

__all__ = [
    "BATCH_NORMS",
    "apply_to_anchors",
    "as_matrix",
    "conv_bn_relu",
    "convolve",
    "convolve_joined",
    "dense",
    "fold_batch_norm",
    "folding_saves",
    "has_fixed_statistics",
    "is_channels_inner",
    "is_depthwise",
    "is_pointwise",
    "map_of_tokens",
    "pointwise",
    "runs_as_built",
    "scale_outputs",
    "without_autocast",
]


def conv_bn_relu(
    in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1
) -> nn.Module:
    """Bias-free convolution that keeps the size of the map, BatchNorm, ReLU.

    Args:
        in_channels: channels of the map.
        out_channels: channels of the result.
        kernel_size: odd side of the convolution.
        dilation: of the convolution.
    """
    padding = dilation * (kernel_size // 2)
    return nn.Sequential(
        nn.Conv2d(
            in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=False
        ),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


def map_of_tokens(tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens `[B, H·W, C]` as a map `[B, C, H, W]`, a view: channels_last where they lie side by
    side.
    """
    if not is_channels_inner(tokens.mT):
        return tokens.mT.unflatten(2, (height, width))
    batch, _, channels = tokens.shape
    # By way of one axis: else a batch of one may get a stride that convolutions do not take for
    # channels_last.
    return tokens.flatten().unflatten(0, (batch, height, width, channels)).movedim(-1, 1)


def without_autocast(x: Tensor) -> AbstractContextManager:
    """No casting on the device of `x`; the meta device has no autocast to switch off."""
    if x.device.type == "meta":
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)
