"""Attention of every position to a dilated window of neighbours (GALDv2's LDv2)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ._checks import cast_and_check, check_choice, check_number, check_pair, check_shape
from ._layout import dense, empty_map, is_channels_inner, statistics_dtype
from ._op import Direction, Op
from ._op.overridable import overridable

NAME = "local_attention"
BORDERS = ("zero", "mask")


@overridable
def local_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: int | tuple[int, int] = 5,
    dilation: int | tuple[int, int] = 1,
    scale: float = 1.0,
    border: str = "zero",
) -> Tensor:
    """Attend from every position to the kh x kw neighbours around it, `dilation` apart.

    out[i] = sum over neighbours j of softmax_j(scale · <query[i], key[j]>) · value[j].

    A neighbour outside the map has score 0, takes part in the softmax and adds nothing to the sum
    (border "zero": keys and values padded with zeros, as GALD does it), or is left out of the
    softmax ("mask"). Nothing of kh·kw elements a position is ever in memory, in the backward
    either: it keeps one log-sum-exp a position and computes scores again.

    Source: Li et al., Global Aggregation then Local Distribution for Scene Parsing (TIP 2021),
    section III, eq. (6) and (7).

    Args:
        query: `[B, Ck, H, W]`, contiguous or channels_last.
        key: `[B, Ck, H, W]`.
        value: `[B, Cv, H, W]`.
        kernel_size: kh and kw, odd; one number for both.
        dilation: distance of neighbours in rows and columns; one number for both.
        scale: factor of the scores.
        border: "zero" or "mask".

    Returns:
        `[B, Cv, H, W]` in the layout and dtype of `query`. Half precision is accumulated in
        float32. Under autocast all arguments are cast to the autocast dtype.

    Raises:
        TypeError: an argument is not a float tensor, or an option has the wrong type.
        ValueError: shapes, dtypes or devices that do not match, no channels, an even or
            non-positive kernel, a dilation below 1, an unknown border.

    Example:
        >>> import torch, attnops
        >>> q, k, v = torch.randn(3, 1, 16, 24, 32).unbind()
        >>> attnops.local_attention(q, k, v, kernel_size=5, dilation=3).shape
        torch.Size([1, 16, 24, 32])
    """
    kernel_size, dilation = checked_window(NAME, kernel_size, dilation)
    scale = check_number(NAME, "scale", scale)
    check_choice(NAME, "border", border, BORDERS)
    query, key, value = cast_and_check(NAME, {"query": query, "key": key, "value": value})
    check_shape(NAME, "query", query, ("B", "Ck", "H", "W"))
    batch, channels, height, width = query.shape
    check_shape(NAME, "key", key, (batch, channels, height, width))
    check_shape(NAME, "value", value, (batch, "Cv", height, width))
    if channels == 0 or value.shape[1] == 0:
        raise ValueError(
            f"{NAME}: needs at least one channel, got Ck={channels}, Cv={value.shape[1]}"
        )
    return _op(query, key, value, kernel_size, dilation, scale, border == "mask")[0]


def checked_window(
    op: str, kernel_size: int | tuple[int, int], dilation: int | tuple[int, int]
) -> tuple[list[int], list[int]]:
    """(kh, kw) and (dh, dw).

    Raises:
        TypeError: not integers or pairs of them.
        ValueError: an even or non-positive kernel, a dilation below 1.
    """
    sides = check_pair(op, "kernel_size", kernel_size)
    if any(k < 1 or k % 2 == 0 for k in sides):
        raise ValueError(
            f"{op}: kernel_size must be odd and positive, so that it has a centre; got "
            f"{kernel_size}"
        )
    steps = check_pair(op, "dilation", dilation)
    if min(steps) < 1:
        raise ValueError(f"{op}: dilation must be at least 1, got {dilation}")
    return sides, steps


def _fake(query: Tensor, key: Tensor, value: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    batch, _, height, width = query.shape
    out = empty_map(value.shape, query, is_channels_inner(query))
    statistics = statistics_dtype(query)
    return out, query.new_empty((batch, height, width), dtype=statistics)


def _backward_fake(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, lse: Tensor, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    inner = is_channels_inner(query)
    return tuple(empty_map(x.shape, query, inner) for x in (query, key, value))


def _prepare(query: Tensor, key: Tensor, value: Tensor, *options: Any) -> tuple[Any, ...]:
    inner = is_channels_inner(query)
    return *(dense(x, inner) for x in (query, key, value)), *options


def _prepare_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, lse: Tensor, *options: Any
) -> tuple[Any, ...]:
    inner = is_channels_inner(query)
    maps = (dense(x, inner) for x in (grad, query, key, value))
    return *maps, lse.contiguous(), *options


def _forward_arguments(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, lse: Tensor, *options: Any
) -> tuple[Any, ...]:
    return query, key, value, *options


def _setup(inputs: tuple[Any, ...], outputs: list[Tensor]) -> tuple[tuple, tuple]:
    query, key, value, *options = inputs
    return (query, key, value, outputs[1]), tuple(options)


_OPTIONS = "int[] kernel_size, int[] dilation, float scale, bool mask_border"
_op = Op(
    NAME,
    Direction(
        f"(Tensor query, Tensor key, Tensor value, {_OPTIONS}) -> (Tensor, Tensor)", _fake, _prepare
    ),
    Direction(
        f"(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor lse, {_OPTIONS})"
        " -> (Tensor, Tensor, Tensor)",
        _backward_fake,
        _prepare_backward,
    ),
    setup=_setup,
    forward_arguments=_forward_arguments,
)
