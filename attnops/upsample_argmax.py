"""Labels at full resolution without full-resolution logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._checks import check_flag, check_pair, check_shape, check_tensors
from ._layout import dense
from ._op import Direction, Op
from ._op.overridable import overridable

NAME = "upsample_argmax"


@overridable
def upsample_argmax(
    logits: Tensor, size: Sequence[int] | int, align_corners: bool = False
) -> Tensor:
    """The class with the largest bilinearly resized logit at every pixel.

    Args:
        logits: `[B, K, h, w]`, contiguous or channels_last.
        size: (H, W), or one number for both.
        align_corners: of the resize, as in torch.nn.functional.interpolate.

    Returns:
        `[B, H, W]`, int64. Among equal logits the first class wins, among NaNs the first NaN. A
        neighbour that the resize weighs with 0 is not read: a class at minus infinity loses, also
        where torch.nn.functional.interpolate makes NaN of 0 times infinity. Half precision is
        interpolated in float32. Not differentiable.

    Raises:
        TypeError: logits are not a float tensor, or `size` not one or two integers.
        ValueError: another shape, no classes, an empty map, a size below 1.

    Example:
        >>> import torch, attnops
        >>> attnops.upsample_argmax(torch.randn(2, 19, 16, 32), (128, 256)).shape
        torch.Size([2, 128, 256])
    """
    check_tensors(NAME, logits=logits)
    check_shape(NAME, "logits", logits, ("B", "K", "h", "w"))
    height, width = checked_size(NAME, size)
    align_corners = check_flag(NAME, "align_corners", align_corners)
    if 0 in logits.shape[1:]:
        raise ValueError(f"{NAME}: logits are empty: {list(logits.shape)}")
    constant = logits.detach() if logits.requires_grad else logits
    return _op(constant, height, width, align_corners)[0]


def checked_size(op: str, size: Sequence[int] | int) -> tuple[int, int]:
    """(H, W) of a map to make; symbolic sizes pass.

    Raises:
        TypeError: not one or two integers.
        ValueError: a size below 1.
    """
    height, width = check_pair(op, "size", size, "an integer or a pair (H, W)")
    if height < 1 or width < 1:
        raise ValueError(f"{op}: size must be at least 1, got {size}")
    return height, width


def _fake(logits: Tensor, height: int, width: int, align_corners: bool) -> tuple[Tensor]:
    return (logits.new_empty((logits.shape[0], height, width), dtype=torch.int64),)


def _prepare(logits: Tensor, *options: Any) -> tuple[Any, ...]:
    return dense(logits), *options


_op = Op(
    NAME,
    Direction(
        "(Tensor logits, SymInt height, SymInt width, bool align_corners) -> (Tensor)",
        _fake,
        _prepare,
    ),
)
