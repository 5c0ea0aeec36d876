"""Multi-scale strip convolutions (SegNeXt's MSCA)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ._checks import cast_and_check, check_shape
from ._layout import empty_map, is_channels_inner
from ._op.convolutions import convolutions_op
from ._op.overridable import overridable

NAME = "strip_conv"

Convolution = tuple[Tensor, Tensor | None]


@overridable
def strip_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    strips: Sequence[tuple[Convolution, Convolution]] = (),
) -> Tensor:
    """A depthwise convolution, plus pairs of strip convolutions of its result.

    a = depthwise(x, weight) + bias; out = a + sum over strips of vertical(horizontal(a)), where
    horizontal is a depthwise 1 x k convolution and vertical a k x 1. Every convolution is padded
    with zeros as a separate one would be: outside the map a and horizontal(a) are zero, biases
    included.

    Source: Guo et al., SegNeXt (NeurIPS 2022), section 3.1, eq. (1) and figure 2.

    Args:
        x: `[B, C, H, W]`, contiguous or channels_last.
        weight: `[C, 1, kh, kw]`, odd sides.
        bias: `[C]` or None.
        strips: pairs ((w_h, b_h), (w_v, b_v)) with w_h `[C, 1, 1, k]`, w_v `[C, 1, k, 1]`, odd k
            (the two may differ), and biases `[C]` or None.

    Returns:
        `[B, C, H, W]` in the layout and dtype of `x`. Half precision is accumulated in float32, and
        intermediate maps are not rounded. Under autocast all arguments are cast to the autocast
        dtype.

    Raises:
        TypeError: an argument is not a float tensor, or `strips` no sequence of pairs of pairs.
        ValueError: shapes, dtypes or devices that do not match, even kernels, no channels.

    Example:
        >>> import torch, attnops
        >>> x = torch.randn(1, 8, 24, 32)
        >>> row, column = torch.randn(8, 1, 1, 7), torch.randn(8, 1, 7, 1)
        >>> strips = [((row, None), (column, None))]
        >>> attnops.strip_conv(x, torch.randn(8, 1, 5, 5), torch.randn(8), strips).shape
        torch.Size([1, 8, 24, 32])
    """
    kernels, biases = _unpacked(weight, bias, strips)
    x, *tensors = cast_and_check(NAME, {"x": x} | kernels, optional=biases)
    kernels = dict(zip(kernels, tensors, strict=False))
    biases = dict(zip(biases, tensors[len(kernels) :], strict=True))
    check_shape(NAME, "x", x, ("B", "C", "H", "W"))
    channels = x.shape[1]
    if channels == 0:
        raise ValueError(f"{NAME}: needs at least one channel, got x {list(x.shape)}")
    for name, kernel in kernels.items():
        check_depthwise_weight(NAME, name, kernel, channels)
    for name, tensor in biases.items():
        if tensor is not None:
            check_shape(NAME, name, tensor, (channels,))
    given = list(biases.values())
    biased = [i for i, bias in enumerate(given) if bias is not None]
    return _op(x, list(kernels.values()), [given[i] for i in biased], biased)[0]


def check_depthwise_weight(op: str, name: str, weight: Tensor, channels: int) -> None:
    """`weight` is `[C, 1, kh, kw]` with odd sides; names of rows and columns ask for one side of 1.

    Raises:
        ValueError: it is not.
    """
    height, width = "kh", "kw"
    if name.endswith("[h]"):
        height = 1
    elif name.endswith("[v]"):
        width = 1
    check_shape(op, name, weight, (channels, 1, height, width))
    if any(side % 2 == 0 for side in weight.shape[2:]):
        raise ValueError(
            f"{op}: {name} must have odd sides, so that it has a centre; got "
            f"{weight.shape[2]}x{weight.shape[3]}"
        )


def _unpacked(
    weight: Tensor, bias: Tensor | None, strips: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Kernels and biases by the names that error messages use, in the order of the op's lists."""
    kernels, biases = {"weight": weight}, {"bias": bias}
    try:
        for i, ((w_h, b_h), (w_v, b_v)) in enumerate(strips):
            kernels |= {f"strips[{i}].weight[h]": w_h, f"strips[{i}].weight[v]": w_v}
            biases |= {f"strips[{i}].bias[h]": b_h, f"strips[{i}].bias[v]": b_v}
    except (TypeError, ValueError):
        raise TypeError(
            f"{NAME}: strips must be a sequence of ((w_h, b_h), (w_v, b_v)), got {strips!r}"
        ) from None
    return kernels, biases


# The op gets the kernels in a list: the local one, then row and column of each strip.
_op = convolutions_op(NAME, lambda x, *parameters: (empty_map(x.shape, x, is_channels_inner(x)),))
