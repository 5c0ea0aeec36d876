"""`upsample_cross_entropy` in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def upsample_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = 255,
    align_corners: bool = False,
    reduction: str = "mean",
    keep_threshold: float | None = None,
    min_kept: int = 0,
) -> Tensor:
    """The definition of `attnops.upsample_cross_entropy`, with the full-resolution logits; every
    step in the dtype of its arguments.
    """
    full = interpolate(logits, target.shape[1:], mode="bilinear", align_corners=align_corners)
    valid = target != ignore_index
    true = torch.where(valid, target, 0)
    log_probability = full.log_softmax(dim=1).gather(1, true.unsqueeze(1)).squeeze(1)
    weights = valid.to(full.dtype) if weight is None else weight[true] * valid
    losses = torch.where(valid, -log_probability * weights, 0)
    if keep_threshold is not None:
        return mined_mean(losses[valid], log_probability[valid].exp(), keep_threshold, min_kept)
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() / weights.sum()


def mined_mean(losses: Tensor, probability: Tensor, keep_threshold: float, min_kept: int) -> Tensor:
    """Mean of the losses whose `probability` of the true class is small enough; 0 if none is."""
    if losses.numel() == 0:
        return losses.sum()
    ordered = probability.detach().sort().values
    threshold = ordered[min(min_kept, len(ordered) - 1)].clamp(min=keep_threshold)
    kept = losses[probability < threshold]
    return kept.mean() if kept.numel() else losses.sum() * 0
