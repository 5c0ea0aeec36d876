"""`depthwise_gelu` in plain PyTorch."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import gelu

from .strip_conv import depthwise


def depthwise_gelu(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The definition of `attnops.depthwise_gelu`; every step in the dtype of its arguments."""
    return gelu(depthwise(x, weight, bias))
