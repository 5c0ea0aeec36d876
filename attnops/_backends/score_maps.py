"""The reference functions on score maps as a backend: merging, labels and losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._layout import dense, is_channels_inner
from .._op import recording_gradients
from ..merge_scales import REDUCTIONS
from ..reference._resize import on_finite_values, resize
from ..reference.merge_scales import merge_at
from ..reference.upsample_argmax import upsample_argmax
from ..upsample_cross_entropy import MEAN, MEAN_OF_ALL, NONE, weights_of
from .precision import as_leaves, gradients_of, widened


def merge_forward(
    scores: list[Tensor],
    logits: Tensor | None,
    height: int,
    width: int,
    reduce: int,
    align_corners: bool,
) -> tuple[Tensor]:
    maps = [widened(s) for s in scores]
    with on_finite_values(*maps):
        out = merge_at(maps, widened(logits), (height, width), REDUCTIONS[reduce], align_corners)
    return (dense(out.to(scores[0].dtype), is_channels_inner(scores[0])),)


def merge_backward(
    grad: Tensor, scores: list[Tensor], logits: Tensor | None, reduce: int, align_corners: bool
) -> tuple[Tensor, Tensor]:
    inner, dtype = is_channels_inner(scores[0]), scores[0].dtype
    with recording_gradients(), on_finite_values(grad, logits, *scores):
        inputs = as_leaves(*scores, *(() if logits is None else (logits,)))
        maps, rest = inputs[: len(scores)], inputs[len(scores) :]
        weights = rest[0] if rest else None
        out = merge_at(maps, weights, grad.shape[2:], REDUCTIONS[reduce], align_corners)
        found = [g.to(dtype) for g in gradients_of(out, inputs, widened(grad))]
    order = (0, 2, 3, 1) if inner else (0, 1, 2, 3)
    packed = torch.cat([g.permute(order).flatten() for g in found[: len(scores)]])
    if logits is None:
        return packed, packed.new_empty((0,))
    return packed, dense(found[-1], inner)


def argmax_forward(logits: Tensor, height: int, width: int, align_corners: bool) -> tuple[Tensor]:
    with on_finite_values(logits):
        return (upsample_argmax(widened(logits), (height, width), align_corners),)


def _losses(
    logits: Tensor, target: Tensor, ignore_index: int, align_corners: bool
) -> tuple[Tensor, Tensor]:
    """Unweighted losses `[B, H, W]`, NaN for labels that are no class, and their statistics.

    Ignored pixels have no part in the gradient either, whatever their logits are.
    """
    valid = (target != ignore_index).unsqueeze(1)
    full = torch.where(valid, resize(logits, target.shape[1:], align_corners), 0)
    largest = full.amax(dim=1).detach()
    shifted = full - largest.unsqueeze(1)
    rest = shifted.exp().sum(dim=1).log()
    true = target.clamp(0, logits.shape[1] - 1).unsqueeze(1)
    loss = rest - shifted.gather(1, true).squeeze(1)
    loss = torch.where(target == true.squeeze(1), loss, torch.nan)
    return torch.where(target == ignore_index, 0, loss), torch.stack([largest, rest])


def cross_entropy_forward(
    logits: Tensor, target: Tensor, ignore_index: int, align_corners: bool
) -> tuple[Tensor, Tensor]:
    with on_finite_values(logits):
        return _losses(widened(logits), target, ignore_index, align_corners)


def cross_entropy_backward(
    grad: Tensor,
    grad_lse: Tensor | None,
    logits: Tensor,
    target: Tensor,
    statistics: Tensor,
    ignore_index: int,
    align_corners: bool,
) -> Tensor:
    with recording_gradients(), on_finite_values(grad, grad_lse, logits):
        inputs = as_leaves(logits)
        outputs = _losses(inputs[0], target, ignore_index, align_corners)
        grads = (grad, torch.zeros_like(grad) if grad_lse is None else grad_lse)
        # The largest logit is a constant here: the log of the rest has the gradient of the whole.
        (found,) = gradients_of(outputs, inputs, (grads[0], grads[1].expand_as(outputs[1])))
    return dense(found.to(logits.dtype), is_channels_inner(logits))


def with_reductions(
    forward: Callable[..., tuple[Tensor, Tensor]], backward: Callable[..., Tensor]
) -> tuple[Callable[..., tuple[Tensor, Tensor, Tensor]], Callable[..., Tensor]]:
    """The passes of upsample_cross_entropy, of implementations that know losses of pixels alone."""

    def reducing_forward(
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        ignore_index: int,
        align_corners: bool,
        reduces: int,
        wide: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        losses, statistics = forward(logits, target, ignore_index, align_corners)
        if reduces == NONE:
            return losses, statistics, losses.new_empty((0,))
        valid = target != ignore_index
        of_pixel = valid.to(losses.dtype)
        if weight is not None:
            of_pixel = weights_of(target, valid, weight, losses)
            losses = losses * of_pixel
        total = of_pixel.sum() if reduces == MEAN else losses.new_ones(())
        if reduces == MEAN_OF_ALL:
            total = total * losses.numel()
        loss = losses.sum() / total
        return loss if wide else loss.to(logits.dtype), statistics, total.reciprocal()

    def spreading_backward(grad: Tensor, grad_lse: Tensor | None, *args: Any) -> Tensor:
        if grad.dim() == 0:
            grad = grad.expand(args[1].shape).contiguous()
        return backward(grad, grad_lse, *args)

    return reducing_forward, spreading_backward
