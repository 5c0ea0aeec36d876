"""GELU of a depthwise convolution (the middle of SegNeXt's feed-forward network)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._checks import cast_and_check, check_shape
from ._layout import dense, empty_map, in_strides_of, is_channels_inner
from ._op import Direction, Op
from ._op.overridable import overridable
from .strip_conv import check_depthwise_weight

NAME = "depthwise_gelu"


@overridable
def depthwise_gelu(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Exact (erf) GELU of a zero-padded depthwise convolution, in one pass.

    Source: Guo et al., SegNeXt (NeurIPS 2022), the feed-forward network of figure 2, after
    Wang et al., PVT v2 (2021).

    Args:
        x: `[B, C, H, W]`, contiguous or channels_last.
        weight: `[C, 1, kh, kw]`, odd sides.
        bias: `[C]` or None.

    Returns:
        `[B, C, H, W]` in the layout and dtype of `x`. Half precision is accumulated in float32. The
        backward computes the convolution again instead of keeping it. Under autocast all arguments
        are cast to the autocast dtype.

    Raises:
        TypeError: an argument is not a float tensor.
        ValueError: shapes, dtypes or devices that do not match, an even kernel, no channels.

    Example:
        >>> import torch, attnops
        >>> attnops.depthwise_gelu(torch.randn(1, 8, 24, 32), torch.randn(8, 1, 3, 3)).shape
        torch.Size([1, 8, 24, 32])
    """
    x, weight, bias = cast_and_check(NAME, {"x": x, "weight": weight}, optional={"bias": bias})
    check_shape(NAME, "x", x, ("B", "C", "H", "W"))
    channels = x.shape[1]
    if channels == 0:
        raise ValueError(f"{NAME}: needs at least one channel, got x {list(x.shape)}")
    check_depthwise_weight(NAME, "weight", weight, channels)
    if bias is not None:
        check_shape(NAME, "bias", bias, (channels,))
    return _op(x, weight, bias)[0]


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor]:
    return (empty_map(x.shape, x, is_channels_inner(x)),)


def _backward_fake(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    grad_x = empty_map(x.shape, x, is_channels_inner(x))
    return grad_x, torch.empty_like(weight), weight.new_empty((weight.shape[0],))


def _prepare(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Any, ...]:
    return dense(x), weight.contiguous(), None if bias is None else bias.contiguous()


def _prepare_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Any, ...]:
    return dense(grad, is_channels_inner(x)), *_prepare(x, weight, bias)


def _restore(args: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Give the gradient of the weight, if `outputs` are gradients, the weight's strides."""
    if len(outputs) == 1:
        return outputs
    grad_x, grad_weight, grad_bias = outputs
    return grad_x, in_strides_of(grad_weight, args[2]), grad_bias


def _setup(inputs: tuple[Any, ...], outputs: list[Tensor]) -> tuple[tuple, tuple]:
    x, weight, bias = inputs
    return (x, weight) if bias is None else (x, weight, bias), ()


def _gradient(
    grads: tuple[Tensor | None, ...], saved: list[Tensor], kept: tuple, call: Callable[..., Any]
) -> tuple[Tensor | None, ...]:
    if grads[0] is None:
        return ()
    x, weight, *rest = saved
    bias = rest[0] if rest else None
    *found, grad_bias = call(grads[0], x, weight, bias)
    return *found, None if bias is None else grad_bias


_op = Op(
    NAME,
    Direction("(Tensor x, Tensor weight, Tensor? bias) -> (Tensor)", _fake, _prepare),
    Direction(
        "(Tensor grad, Tensor x, Tensor weight, Tensor? bias) -> (Tensor, Tensor, Tensor)",
        _backward_fake,
        _prepare_backward,
    ),
    setup=_setup,
    gradient=_gradient,
    restore=_restore,
)
