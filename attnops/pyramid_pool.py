"""Adaptive pooling of a map to several grids in one pass (ANN, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ._checks import check_choice, check_integers, check_shape, check_tensors
from ._layout import dense, empty_map, is_channels_inner
from ._op import Direction, Op
from ._op.overridable import overridable

NAME = "pyramid_pool"


@overridable
def pyramid_pool(x: Tensor, sizes: Sequence[int] = (1, 3, 6, 8), reduce: str = "mean") -> Tensor:
    """Pool a map to every grid of a pyramid, in one pass over the map.

    Level n divides the map into n x n bins as `torch.nn.functional.adaptive_avg_pool2d` does: row i
    covers floor(i·H/n) to ceil((i+1)·H/n), so bins overlap where n does not divide H, and maps
    smaller than the grid repeat values. The cells of a level stand in row-major order, the levels
    in the order of `sizes`.

    Source: Zhu et al., Asymmetric Non-local Neural Networks for Semantic Segmentation (ICCV 2019),
    section 3.2, eq. (8) and (12), figure 4; `reduce="max"` is the pyramid max sampling of its
    table 7.

    Args:
        x: map `[B, C, H, W]`, contiguous or channels_last (other strides are copied).
        sizes: side n of each level's grid, at least 1 each.
        reduce: "mean", or "max" (first maximum in row-major order takes the gradient; NaN wins).

    Returns:
        `[B, C, S]` with S = sum of n², contiguous, dtype of `x`. Half precision is accumulated in
        float32. Under autocast the dtype stays that of `x`.

    Raises:
        TypeError: `x` is not a float tensor, or `sizes` are not integers.
        ValueError: `x` is not 4-D or has no pixels, `sizes` is empty or has a size below 1,
            unknown `reduce`.

    Example:
        >>> import torch, attnops
        >>> attnops.pyramid_pool(torch.randn(2, 16, 24, 32)).shape
        torch.Size([2, 16, 110])
    """
    check_tensors(NAME, x=x)
    check_shape(NAME, "x", x, ("B", "C", "H", "W"))
    if x.shape[2] == 0 or x.shape[3] == 0:
        raise ValueError(f"{NAME}: x has no pixels: got [{', '.join(map(str, x.shape))}]")
    check_choice(NAME, "reduce", reduce, ("mean", "max"))
    return _op(x, checked_sizes(NAME, sizes), reduce == "max")[0]


def checked_sizes(op: str, sizes: Sequence[int]) -> list[int]:
    """`sizes` as a list of positive integers.

    Raises:
        TypeError: not a sequence of integers.
        ValueError: empty, or a size below 1.
    """
    found = check_integers(op, "sizes", sizes, least=1)
    if not found:
        raise ValueError(f"{op}: sizes is empty; expected at least one level, such as (1, 3, 6, 8)")
    return found


def anchor_count(sizes: Sequence[int]) -> int:
    """Number of anchors S of a pyramid: the sum of n² (ANN, eq. (12))."""
    return sum(size * size for size in sizes)


def _fake(x: Tensor, sizes: list[int], use_max: bool) -> tuple[Tensor, Tensor]:
    batch, channels = x.shape[:2]
    out = x.new_empty((batch, channels, anchor_count(sizes)))
    argmax = x.new_empty(out.shape if use_max else (0,), dtype=torch.int32)
    return out, argmax


def _backward_fake(grad: Tensor, argmax: Tensor, height: int, width: int, *options: Any) -> Tensor:
    channels_last = options[-1]
    return empty_map((*grad.shape[:2], height, width), grad, channels_last)


def _prepare(x: Tensor, sizes: list[int], use_max: bool) -> tuple[Any, ...]:
    return dense(x), sizes, use_max


def _prepare_backward(grad: Tensor, *args: Any) -> tuple[Any, ...]:
    return grad.contiguous(), *args


def _forward_arguments(
    grad: Tensor, argmax: Tensor, height: int, width: int, sizes: list[int], use_max: bool, *_: Any
) -> tuple[Any, ...]:
    return grad.new_empty(()).expand(*grad.shape[:2], height, width), sizes, use_max


def _setup(inputs: tuple[Any, ...], outputs: list[Tensor]) -> tuple[tuple, tuple]:
    x, sizes, use_max = inputs
    height, width = x.shape[2:]
    return (outputs[1],), (height, width, sizes, use_max, is_channels_inner(x))


def _gradient(
    grads: tuple[Tensor | None, ...], saved: list[Tensor], kept: tuple, call: Callable[..., Tensor]
) -> tuple[Tensor, ...]:
    return () if grads[0] is None else (call(grads[0], *saved, *kept),)


_op = Op(
    NAME,
    Direction("(Tensor x, int[] sizes, bool use_max) -> (Tensor, Tensor)", _fake, _prepare),
    Direction(
        "(Tensor grad, Tensor argmax, SymInt height, SymInt width, int[] sizes, bool use_max,"
        " bool channels_last) -> Tensor",
        _backward_fake,
        _prepare_backward,
    ),
    setup=_setup,
    gradient=_gradient,
    forward_arguments=_forward_arguments,
)
