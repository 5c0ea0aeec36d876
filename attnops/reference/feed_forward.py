"""`feed_forward` in plain PyTorch."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import conv2d

from .depthwise_gelu import depthwise_gelu


def feed_forward(
    x: Tensor,
    expand: Tensor,
    depthwise: Tensor,
    contract: Tensor,
    expand_bias: Tensor | None = None,
    depthwise_bias: Tensor | None = None,
    contract_bias: Tensor | None = None,
) -> Tensor:
    """The definition of `attnops.feed_forward`; every step in the dtype of its arguments."""
    hidden = conv2d(x, expand, expand_bias)
    return conv2d(depthwise_gelu(hidden, depthwise, depthwise_bias), contract, contract_bias)
