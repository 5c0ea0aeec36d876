"""The reference functions as a backend: any device, any size, gradients by autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .._dispatch import register
from .._layout import dense, is_channels_inner
from .._op import recording_gradients
from ..local_attention import BORDERS
from ..upsample_gate import ACTIVATIONS, RESIDUALS
from .anchor_attention import anchor_attention, anchor_scores
from .group_attention import group_affinity, group_attention
from .local_attention import local_attention, local_scores
from .pyramid_pool import pyramid_pool
from .upsample_gate import upsample_gate


def _wide(x: Tensor | None) -> Tensor | None:
    """Half precision in float32, where the ops accumulate."""
    if x is None or x.dtype in (torch.float32, torch.float64):
        return x
    return x.float()


def _gradients(output: Tensor, inputs: Sequence[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(output, inputs, grad)


def _leaves(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else _wide(t).detach().requires_grad_() for t in tensors]


def _refuse_nothing(*args: Any) -> None:
    return None


def _pyramid_pool(x: Tensor, sizes: list[int], use_max: bool) -> tuple[Tensor, Tensor]:
    if use_max:
        pooled = [
            torch.nn.functional.adaptive_max_pool2d(_wide(x), size, return_indices=True)
            for size in sizes
        ]
        out, argmax = (torch.cat([p[i].flatten(2) for p in pooled], dim=2) for i in (0, 1))
        return out.to(x.dtype), argmax.int()
    out = pyramid_pool(_wide(x), sizes, "mean").to(x.dtype).contiguous()
    return out, x.new_empty((0,), dtype=torch.int32)


def _pyramid_pool_backward(
    grad: Tensor,
    argmax: Tensor,
    height: int,
    width: int,
    sizes: list[int],
    use_max: bool,
    channels_last: bool,
) -> Tensor:
    wide = _wide(grad)
    shape = (*grad.shape[:2], height, width)
    if use_max:
        found = wide.new_zeros((*shape[:2], height * width))
        found = found.scatter_add_(2, argmax.long(), wide).view(shape)
    else:
        with recording_gradients():
            x = wide.new_zeros(shape).requires_grad_()
            (found,) = _gradients(pyramid_pool(x, sizes), [x], wide)
    return dense(found.to(grad.dtype), channels_last)


def _anchor_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    query_, key_, value_, bias_ = map(_wide, (query, key, value, bias))
    scores = anchor_scores(query_, key_, scale, bias_)
    out = value_ @ scores.softmax(dim=2).transpose(1, 2)
    return dense(out.to(query.dtype), is_channels_inner(query)), scores.logsumexp(dim=2)


def _anchor_attention_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    lse: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with recording_gradients():
        query_, key_, value_, bias_ = _leaves(query, key, value, bias)
        out = anchor_attention(query_, key_, value_, scale, bias=bias_)
        inputs = [t for t in (query_, key_, value_, bias_) if t is not None]
        found = [g.to(query.dtype) for g in _gradients(out, inputs, _wide(grad))]
    grad_query = dense(found[0], is_channels_inner(query))
    grad_bias = found[3] if bias is not None else key.new_empty((0,))
    return grad_query, found[1].contiguous(), found[2].contiguous(), grad_bias


def _map_gradients(
    function: Callable[..., Tensor], maps: Sequence[Tensor], grad: Tensor, like: Tensor
) -> tuple[Tensor, ...]:
    """Gradients of a function of maps, in the dtype and layout of `like`."""
    with recording_gradients():
        leaves = _leaves(*maps)
        found = _gradients(function(*leaves), leaves, _wide(grad))
    return tuple(dense(g.to(like.dtype), is_channels_inner(like)) for g in found)


def _local_attention(
    query: Tensor, key: Tensor, value: Tensor, *options: Any
) -> tuple[Tensor, Tensor]:
    *window, mask = options
    wide = [_wide(x) for x in (query, key, value)]
    out = local_attention(*wide, *window, BORDERS[mask]).to(query.dtype)
    scores = local_scores(*wide[:2], *window, BORDERS[mask])
    return dense(out, is_channels_inner(query)), scores.logsumexp(dim=1)


def _local_attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, lse: Tensor, *options: Any
) -> tuple[Tensor, ...]:
    *window, mask = options
    return _map_gradients(
        lambda *maps: local_attention(*maps, *window, BORDERS[mask]),
        (query, key, value),
        grad,
        query,
    )


def _gate(
    activation: int,
    activation_first: bool,
    residual: int,
    input_weight: float,
    align_corners: bool,
) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, logits: upsample_gate(
        logits,
        x,
        ACTIVATIONS[activation],
        activation_first,
        RESIDUALS[residual],
        input_weight,
        align_corners,
    )


def _upsample_gate(x: Tensor, logits: Tensor, *options: Any) -> tuple[Tensor]:
    out = _gate(*options)(_wide(x), _wide(logits)).to(x.dtype)
    return (dense(out, is_channels_inner(x)),)


def _upsample_gate_backward(
    grad: Tensor, x: Tensor, logits: Tensor, *options: Any
) -> tuple[Tensor, ...]:
    return _map_gradients(_gate(*options), (x, logits), grad, x)


def _group_attention(theta: Tensor, phi: Tensor, g: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    wide = [_wide(x) for x in (theta, phi, g)]
    out = group_attention(*wide, groups).to(theta.dtype)
    return dense(out, is_channels_inner(theta)), group_affinity(*wide[1:], groups)


def _group_attention_backward(
    grad: Tensor, theta: Tensor, phi: Tensor, g: Tensor, affinity: Tensor, groups: int
) -> tuple[Tensor, ...]:
    return _map_gradients(
        lambda *maps: group_attention(*maps, groups), (theta, phi, g), grad, theta
    )


def register_all() -> None:
    """Register the reference implementation of every op."""
    for op, forward, backward in (
        ("pyramid_pool", _pyramid_pool, _pyramid_pool_backward),
        ("anchor_attention", _anchor_attention, _anchor_attention_backward),
        ("local_attention", _local_attention, _local_attention_backward),
        ("upsample_gate", _upsample_gate, _upsample_gate_backward),
        ("group_attention", _group_attention, _group_attention_backward),
    ):
        register(op, "reference", forward=forward, backward=backward, refuse=_refuse_nothing)
