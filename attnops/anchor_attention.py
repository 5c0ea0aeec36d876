"""Attention of every position of a map to a few anchors (ANN, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ._checks import cast_and_check, check_number, check_shape
from ._layout import dense, empty_map, is_channels_inner, statistics_dtype
from ._op import Direction, Op
from ._op.overridable import overridable

NAME = "anchor_attention"
MAX_FUSED_ANCHORS = 512


@overridable
def anchor_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None = None,
    *,
    bias: Tensor | None = None,
) -> Tensor:
    """Attend from N positions to S anchors, S much smaller than N, without an N x S tensor.

    out[:, n] = sum over s of softmax_s(scale · <query[:, n], key[:, s]> + bias[s]) · value[:, s].

    Source: Zhu et al., Asymmetric Non-local Neural Networks for Semantic Segmentation (ICCV 2019),
    section 3.2, eq. (9) and (10).

    Args:
        query: `[B, Ck, *spatial]`, any number of spatial axes, contiguous or channels_last.
        key: anchors `[B, Ck, S]`.
        value: `[B, Cv, S]`.
        scale: factor of the scores; None: Ck^(-1/2).
        bias: `[B, S]`, added to the scaled scores; None: nothing. (A bias of the query's
            projection ends up here when the projection is folded into the anchors.)

    Returns:
        `[B, Cv, *spatial]` in the layout and dtype of `query`. Half precision is accumulated in
        float32. Up to S = 512 the fused kernels run; beyond it the reference does, and a forced
        backend raises. Under autocast all arguments are cast to the autocast dtype.

    Raises:
        TypeError: an argument is not a float tensor, or `scale` not a number.
        ValueError: shapes, dtypes or devices that do not match, no channels, no anchors.

    Example:
        >>> import torch, attnops
        >>> x = torch.randn(2, 16, 24, 32)
        >>> anchors = attnops.pyramid_pool(x)
        >>> attnops.anchor_attention(x, anchors, anchors).shape
        torch.Size([2, 16, 24, 32])
    """
    query, key, value, bias = cast_and_check(
        NAME, {"query": query, "key": key, "value": value}, optional={"bias": bias}
    )
    if query.dim() < 3:
        raise ValueError(f"{NAME}: query must be [B, Ck, *spatial], got {list(query.shape)}")
    batch, channels = query.shape[:2]
    check_shape(NAME, "key", key, (batch, channels, "S"))
    check_shape(NAME, "value", value, (batch, "Cv", key.shape[2]))
    if bias is not None:
        check_shape(NAME, "bias", bias, (batch, key.shape[2]))
    if channels == 0 or value.shape[1] == 0 or key.shape[2] == 0:
        raise ValueError(
            f"{NAME}: needs at least one channel and one anchor, got Ck={channels}, "
            f"Cv={value.shape[1]}, S={key.shape[2]}"
        )
    scale = channels**-0.5 if scale is None else scale
    scale = check_number(NAME, "scale", scale, "a number or None")
    return _op(query, key, value, bias, scale)[0]


def _fake(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    batch, _, *spatial = query.shape
    out = empty_map((batch, value.shape[1], *spatial), query, is_channels_inner(query))
    statistics = statistics_dtype(query)
    return out, query.new_empty((batch, *spatial), dtype=statistics)


def _backward_fake(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_query = empty_map(query.shape, query, is_channels_inner(query))
    grad_bias = key.new_empty((0,) if bias is None else bias.shape)
    return grad_query, key.new_empty(key.shape), value.new_empty(value.shape), grad_bias


def _prepare_anchors(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(None if t is None else t.contiguous() for t in tensors)


def _prepare(query: Tensor, *args: Any) -> tuple[Any, ...]:
    *anchors, scale = args
    return dense(query).flatten(2), *_prepare_anchors(*anchors), scale


def _prepare_backward(grad: Tensor, query: Tensor, *args: Any) -> tuple[Any, ...]:
    *anchors, lse, scale = args
    inner = is_channels_inner(query)
    maps = (dense(x, inner).flatten(2) for x in (grad, query))
    return *maps, *_prepare_anchors(*anchors), lse.contiguous().flatten(1), scale


def _restore(args: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Give the map in `outputs`, and the statistics of the forward, their spatial axes back."""
    spatial = args[0].shape[2:]
    out, *rest = outputs
    out = out.view(*out.shape[:2], *spatial)
    if len(rest) == 1:
        rest = [rest[0].view(-1, *spatial)]
    return out, *rest


def _forward_arguments(grad: Tensor, *args: Any) -> tuple[Any, ...]:
    *tensors, _, scale = args
    return *tensors, scale


def _setup(inputs: tuple[Any, ...], outputs: list[Tensor]) -> tuple[tuple, tuple]:
    query, key, value, bias, scale = inputs
    tensors = (query, key, value, outputs[1])
    return tensors if bias is None else (*tensors, bias), (scale,)


def _gradient(
    grads: tuple[Tensor | None, ...], saved: list[Tensor], kept: tuple, call: Callable[..., Any]
) -> tuple[Tensor | None, ...]:
    if grads[0] is None:
        return ()
    query, key, value, lse, *rest = saved
    bias = rest[0] if rest else None
    *found, grad_bias = call(grads[0], query, key, value, bias, lse, *kept)
    return *found, None if bias is None else grad_bias


_op = Op(
    NAME,
    Direction(
        "(Tensor query, Tensor key, Tensor value, Tensor? bias, float scale) -> (Tensor, Tensor)",
        _fake,
        _prepare,
    ),
    Direction(
        "(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor? bias, Tensor lse,"
        " float scale) -> (Tensor, Tensor, Tensor, Tensor)",
        _backward_fake,
        _prepare_backward,
    ),
    setup=_setup,
    gradient=_gradient,
    forward_arguments=_forward_arguments,
    restore=_restore,
)
