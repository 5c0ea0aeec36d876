"""Multi-scale strip convolutions (SegNeXt's MSCA)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ._checks import autocast, check_shape, check_tensors
from ._layout import dense, empty_map, is_channels_inner
from ._op import Op
from ._overridable import overridable

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
    given = {"x": x} | kernels | {n: b for n, b in biases.items() if b is not None}
    for name, tensor in given.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{NAME}: {name} must be a tensor, got {type(tensor).__name__}")
    cast = dict(zip(given, autocast(*given.values()), strict=True))
    check_tensors(NAME, **cast)
    x = cast["x"]
    check_shape(NAME, "x", x, ("B", "C", "H", "W"))
    channels = x.shape[1]
    if channels == 0:
        raise ValueError(f"{NAME}: needs at least one channel, got x {list(x.shape)}")
    for name in kernels:
        check_depthwise_weight(NAME, name, cast[name], channels)
    for name, tensor in biases.items():
        if tensor is not None:
            check_shape(NAME, name, cast[name], (channels,))
    taps = torch.cat([cast[name].flatten(1) for name in kernels], dim=1)
    zero = x.new_zeros(()).expand(channels)
    packed = torch.stack([cast.get(name, zero) for name in biases], dim=1)
    rows, columns = ([cast[n].numel() // channels for n in list(kernels)[i::2]] for i in (1, 2))
    return _op(x, taps, packed, list(weight.shape[2:]), rows, columns)[0]


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
    """Kernels and biases by the names that error messages use, in the order of packing."""
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


# The op itself gets packed parameters: taps [C, T], of the local kernel row by row, then of each
# strip those of the row and of the column; biases [C, 1 + 2 * strips] in the same order.


def _fake(x: Tensor, *args: Any) -> tuple[Tensor]:
    return (empty_map(x.shape, x, is_channels_inner(x)),)


def _backward_fake(
    grad: Tensor, x: Tensor, taps: Tensor, biases: Tensor, *sizes: Any
) -> tuple[Tensor, Tensor, Tensor]:
    grad_x = empty_map(x.shape, x, is_channels_inner(x))
    return grad_x, taps.new_empty(taps.shape), biases.new_empty(biases.shape)


def _prepare(x: Tensor, taps: Tensor, biases: Tensor, *sizes: Any) -> tuple[Any, ...]:
    return dense(x), taps.contiguous(), biases.contiguous(), *sizes


def _prepare_backward(
    grad: Tensor, x: Tensor, taps: Tensor, biases: Tensor, *sizes: Any
) -> tuple[Any, ...]:
    inner = is_channels_inner(x)
    return dense(grad, inner), dense(x, inner), taps.contiguous(), biases.contiguous(), *sizes


def _forward_arguments(grad: Tensor, *args: Any) -> tuple[Any, ...]:
    return args


def _setup(inputs: tuple[Any, ...], outputs: list[Tensor]) -> tuple[tuple, tuple]:
    return inputs[:3], inputs[3:]


def _gradient(
    grads: tuple[Tensor | None, ...], saved: list[Tensor], kept: tuple, call: Callable[..., Any]
) -> tuple[Tensor | None, ...]:
    nothing = (None,) * len(kept)
    if grads[0] is None:
        return None, None, None, *nothing
    return *call(grads[0], *saved, *kept), *nothing


_PARAMETERS = "Tensor taps, Tensor biases, int[] kernel_size, int[] rows, int[] columns"
_op = Op(
    NAME,
    forward=f"(Tensor x, {_PARAMETERS}) -> (Tensor)",
    backward=f"(Tensor grad, Tensor x, {_PARAMETERS}) -> (Tensor, Tensor, Tensor)",
    fake=_fake,
    backward_fake=_backward_fake,
    prepare=_prepare,
    prepare_backward=_prepare_backward,
    setup=_setup,
    gradient=_gradient,
    forward_arguments=_forward_arguments,
)
