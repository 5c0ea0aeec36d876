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
from ..nmf import RECORD_LAST, RECORD_NOTHING
from ..reference._exporting import is_portable
from ..reference._resize import on_finite_values
from ..reference.anchor_attention import anchor_attention, anchor_scores
from ..reference.depthwise_gelu import depthwise_gelu
from ..reference.feed_forward import feed_forward
from ..reference.group_attention import group_affinity, group_attention
from ..reference.local_attention import local_attention, local_scores
from ..reference.nmf import initial_coef, nmf, update_bases, update_coef
from ..reference.pyramid_pool import pyramid_pool
from ..reference.strip_conv import strip_conv
from ..reference.upsample_gate import upsample_gate
from ..upsample_gate import ACTIVATIONS, RESIDUALS
from .precision import as_leaves, gradients_of, widened
from .score_maps import (
    argmax_forward,
    cross_entropy_backward,
    cross_entropy_forward,
    merge_backward,
    merge_forward,
    with_reductions,
)


def _refuse_nothing(*args: Any) -> None:
    return None


def _pyramid_pool(x: Tensor, sizes: list[int], use_max: bool) -> tuple[Tensor, Tensor]:
    if use_max and not is_portable():
        pooled = [
            torch.nn.functional.adaptive_max_pool2d(widened(x), size, return_indices=True)
            for size in sizes
        ]
        out, argmax = (torch.cat([p[i].flatten(2) for p in pooled], dim=2) for i in (0, 1))
        return out.to(x.dtype), argmax.int()
    out = pyramid_pool(widened(x), sizes, "max" if use_max else "mean").to(x.dtype).contiguous()
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
    wide = widened(grad)
    shape = (*grad.shape[:2], height, width)
    if use_max:
        found = wide.new_zeros((*shape[:2], height * width))
        found = found.scatter_add_(2, argmax.long(), wide).view(shape)
    else:
        with recording_gradients():
            x = wide.new_zeros(shape).requires_grad_()
            (found,) = gradients_of(pyramid_pool(x, sizes), [x], wide)
    return dense(found.to(grad.dtype), channels_last)


def _anchor_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    query_, key_, value_, bias_ = map(widened, (query, key, value, bias))
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
        query_, key_, value_, bias_ = as_leaves(query, key, value, bias)
        out = anchor_attention(query_, key_, value_, scale, bias=bias_)
        inputs = [t for t in (query_, key_, value_, bias_) if t is not None]
        found = [g.to(query.dtype) for g in gradients_of(out, inputs, widened(grad))]
    grad_query = dense(found[0], is_channels_inner(query))
    grad_bias = found[3] if bias is not None else key.new_empty((0,))
    return grad_query, found[1].contiguous(), found[2].contiguous(), grad_bias


def _map_gradients(
    function: Callable[..., Tensor], maps: Sequence[Tensor], grad: Tensor, like: Tensor
) -> tuple[Tensor, ...]:
    """Gradients of a function of maps, in the dtype and layout of `like`."""
    with recording_gradients():
        leaves = as_leaves(*maps)
        found = gradients_of(function(*leaves), leaves, widened(grad))
    return tuple(dense(g.to(like.dtype), is_channels_inner(like)) for g in found)


def _local_attention(
    query: Tensor, key: Tensor, value: Tensor, *options: Any
) -> tuple[Tensor, Tensor]:
    *window, mask_border = options
    wide = [widened(x) for x in (query, key, value)]
    out = local_attention(*wide, *window, BORDERS[int(mask_border)]).to(query.dtype)
    scores = local_scores(*wide[:2], *window, BORDERS[int(mask_border)])
    return dense(out, is_channels_inner(query)), scores.logsumexp(dim=1)


def _local_attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, lse: Tensor, *options: Any
) -> tuple[Tensor, ...]:
    *window, mask_border = options
    return _map_gradients(
        lambda *maps: local_attention(*maps, *window, BORDERS[int(mask_border)]),
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
    with on_finite_values(logits):
        out = _gate(*options)(widened(x), widened(logits)).to(x.dtype)
    return (dense(out, is_channels_inner(x)),)


def _upsample_gate_backward(
    grad: Tensor, x: Tensor, logits: Tensor, *options: Any
) -> tuple[Tensor, ...]:
    with on_finite_values(grad, x, logits):
        return _map_gradients(_gate(*options), (x, logits), grad, x)


def _group_attention(theta: Tensor, phi: Tensor, g: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    wide = [widened(x) for x in (theta, phi, g)]
    out = group_attention(*wide, groups).to(theta.dtype)
    return dense(out, is_channels_inner(theta)), group_affinity(*wide[1:], groups)


def _group_attention_backward(
    grad: Tensor, theta: Tensor, phi: Tensor, g: Tensor, affinity: Tensor, groups: int
) -> tuple[Tensor, ...]:
    return _map_gradients(
        lambda *maps: group_attention(*maps, groups), (theta, phi, g), grad, theta
    )


def _with_lists(function: Callable[..., Tensor]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Forward and backward of an op that gets the convolutions of `function` in lists.

    Args:
        function: (x, a list of pairs of a weight and its bias or None) -> a map.
    """

    def run(
        x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], biased: list[int]
    ) -> Tensor:
        found = dict(zip(biased, biases, strict=True))
        return function(x, [(weight, found.get(i)) for i, weight in enumerate(weights)])

    def forward(
        x: Tensor, weights: list[Tensor], biases: list[Tensor], biased: list[int]
    ) -> tuple[Tensor]:
        wide = [[widened(t) for t in tensors] for tensors in (weights, biases)]
        return (dense(run(widened(x), *wide, biased).to(x.dtype), is_channels_inner(x)),)

    def backward(
        grad: Tensor, x: Tensor, weights: list[Tensor], biases: list[Tensor], biased: list[int]
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        count = 1 + len(weights)
        with recording_gradients():
            leaves = as_leaves(x, *weights, *biases)
            out = run(leaves[0], leaves[1:count], leaves[count:], biased)
            grad_x, *rest = (g.to(x.dtype) for g in gradients_of(out, leaves, widened(grad)))
        rest = [g.contiguous() for g in rest]
        return dense(grad_x, is_channels_inner(x)), rest[: len(weights)], rest[len(weights) :]

    return forward, backward


def _strip_conv(x: Tensor, convolutions: list[tuple[Tensor, Tensor | None]]) -> Tensor:
    first, *pairs = convolutions
    return strip_conv(x, *first, list(zip(pairs[0::2], pairs[1::2], strict=True)))


def _feed_forward(x: Tensor, convolutions: list[tuple[Tensor, Tensor | None]]) -> Tensor:
    weights, biases = zip(*convolutions, strict=True)
    return feed_forward(x, *weights, *biases)


def _depthwise_gelu(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor]:
    out = depthwise_gelu(*map(widened, (x, weight, bias))).to(x.dtype)
    return (dense(out, is_channels_inner(x)),)


def _depthwise_gelu_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, ...]:
    if bias is None:
        bias = x.new_zeros(x.shape[1])
    with recording_gradients():
        leaves = as_leaves(x, weight, bias)
        found = gradients_of(depthwise_gelu(*leaves), leaves, widened(grad))
        grad_x, *rest = (g.to(x.dtype) for g in found)
    return dense(grad_x, is_channels_inner(x)), *(g.contiguous() for g in rest)


def _nmf(
    x: Tensor, bases: Tensor, steps: int, inv_t: float, eps: float, one_step: bool, record: int
) -> tuple[Tensor, ...]:
    wide, found = widened(x), widened(bases)
    coef = initial_coef(wide, found, inv_t)
    past_bases, past_coef = [], [coef]
    for _ in range(steps):
        coef = update_coef(wide, found, coef, eps)
        found = update_bases(wide, found, coef, eps)
        past_bases.append(found)
        past_coef.append(coef)
    if one_step:
        found, coef = found.detach(), coef.detach()
    before, coef = coef, update_coef(wide, found, coef, eps)
    if record == RECORD_NOTHING:
        past_bases, past_coef = found.new_empty(0), found.new_empty(0)
    elif record == RECORD_LAST:
        past_bases, past_coef = found[None].clone(), before[None]
    else:
        empty = found.new_empty((0, *found.shape))
        past_bases = torch.stack(past_bases) if steps else empty
        past_coef = torch.stack([*past_coef, coef])
    out = found.clone() if steps == 0 else found
    return out.to(x.dtype), coef.to(x.dtype).contiguous(), past_bases, past_coef


def _nmf_backward(
    x: Tensor,
    bases: Tensor,
    grad_bases: Tensor | None,
    grad_coef: Tensor | None,
    past_bases: Tensor,
    past_coef: Tensor,
    inv_t: float,
    eps: float,
    one_step: bool,
) -> tuple[Tensor, Tensor]:
    with recording_gradients():
        source, initial = as_leaves(x, bases)
        if one_step:
            found, coef = None, update_coef(source, past_bases[0], past_coef[0], eps)
        else:
            found, coef = nmf(source, initial, past_bases.shape[0], inv_t, eps)
        pairs = [
            (output, widened(grad))
            for output, grad in ((found, grad_bases), (coef, grad_coef))
            if grad is not None
        ]
        outputs, grads = zip(*pairs, strict=True)
        grad_x, grad_initial = torch.autograd.grad(
            outputs, (source, initial), grads, allow_unused=True, materialize_grads=True
        )
    grad_x = dense(grad_x.to(x.dtype), is_channels_inner(x))
    return grad_x, grad_initial.to(bases.dtype).contiguous()


def register_all() -> None:
    """Register the reference implementation of every op."""
    for op, forward, backward in (
        ("pyramid_pool", _pyramid_pool, _pyramid_pool_backward),
        ("anchor_attention", _anchor_attention, _anchor_attention_backward),
        ("local_attention", _local_attention, _local_attention_backward),
        ("upsample_gate", _upsample_gate, _upsample_gate_backward),
        ("group_attention", _group_attention, _group_attention_backward),
        ("strip_conv", *_with_lists(_strip_conv)),
        ("depthwise_gelu", _depthwise_gelu, _depthwise_gelu_backward),
        ("feed_forward", *_with_lists(_feed_forward)),
        ("nmf", _nmf, _nmf_backward),
        ("merge_scales", merge_forward, merge_backward),
        ("upsample_cross_entropy", *with_reductions(cross_entropy_forward, cross_entropy_backward)),
        ("upsample_argmax", argmax_forward, None),
    ):
        register(op, "reference", forward=forward, backward=backward, refuse=_refuse_nothing)
