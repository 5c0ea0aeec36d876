"""SegNeXt's feed-forward network: 1x1 convolution, depthwise convolution, GELU, 1x1 convolution."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ._checks import cast_and_check, check_shape
from ._layout import empty_map, is_channels_inner
from ._op.convolutions import convolutions_op
from ._op.overridable import overridable
from .strip_conv import check_depthwise_weight

NAME = "feed_forward"


@overridable
def feed_forward(
    x: Tensor,
    expand: Tensor,
    depthwise: Tensor,
    contract: Tensor,
    expand_bias: Tensor | None = None,
    depthwise_bias: Tensor | None = None,
    contract_bias: Tensor | None = None,
) -> Tensor:
    """A 1x1 convolution, a zero-padded depthwise convolution, exact (erf) GELU, a 1x1 convolution.

    hidden = expand·x + its bias; out = contract·gelu(depthwise(hidden) + its bias) + its bias, with
    D channels between, 4 to 8 times those of the map in SegNeXt. Outside the map `hidden` is zero,
    its bias included.

    Source: Guo et al., SegNeXt (NeurIPS 2022), the feed-forward network of figure 2, after
    Wang et al., PVT v2 (2021).

    Args:
        x: `[B, C, H, W]`, contiguous or channels_last.
        expand: `[D, C, 1, 1]`.
        depthwise: `[D, 1, kh, kw]`, odd sides.
        contract: `[K, D, 1, 1]`.
        expand_bias: `[D]` or None.
        depthwise_bias: `[D]` or None.
        contract_bias: `[K]` or None.

    Returns:
        `[B, K, H, W]` in the layout and dtype of `x`. Half precision is accumulated in float32; the
        products take the GELU rounded to it. The backward computes the maps of D channels again
        instead of keeping them. Under autocast all arguments are cast to the autocast dtype.

    Raises:
        TypeError: an argument is not a float tensor.
        ValueError: shapes, dtypes or devices that do not match, an even kernel, no channels.

    Example:
        >>> import torch, attnops
        >>> expand, contract = torch.randn(32, 8, 1, 1), torch.randn(8, 32, 1, 1)
        >>> depthwise = torch.randn(32, 1, 3, 3)
        >>> attnops.feed_forward(torch.randn(1, 8, 24, 32), expand, depthwise, contract).shape
        torch.Size([1, 8, 24, 32])
    """
    weights = {"expand": expand, "depthwise": depthwise, "contract": contract}
    biases = {
        "expand_bias": expand_bias,
        "depthwise_bias": depthwise_bias,
        "contract_bias": contract_bias,
    }
    x, *tensors = cast_and_check(NAME, {"x": x} | weights, optional=biases)
    (expand, depthwise, contract), given = tensors[:3], tensors[3:]
    check_shape(NAME, "x", x, ("B", "C", "H", "W"))
    check_shape(NAME, "expand", expand, ("D", x.shape[1], 1, 1))
    hidden = expand.shape[0]
    check_depthwise_weight(NAME, "depthwise", depthwise, hidden)
    check_shape(NAME, "contract", contract, ("K", hidden, 1, 1))
    channels = (hidden, hidden, contract.shape[0])
    if 0 in (x.shape[1], *channels):
        raise ValueError(
            f"{NAME}: needs at least one channel everywhere, got x {list(x.shape)}, expand "
            f"{list(expand.shape)}, contract {list(contract.shape)}"
        )
    for name, bias, count in zip(biases, given, channels, strict=True):
        if bias is not None:
            check_shape(NAME, name, bias, (count,))
    biased = [i for i, bias in enumerate(given) if bias is not None]
    return _op(x, [expand, depthwise, contract], [given[i] for i in biased], biased)[0]


def _fake(x: Tensor, weights: list[Tensor], *biases: Any) -> tuple[Tensor]:
    shape = (x.shape[0], weights[2].shape[0], *x.shape[2:])
    return (empty_map(shape, x, is_channels_inner(x)),)


# The op gets the weights in the order in which they are applied.
_op = convolutions_op(NAME, _fake)
