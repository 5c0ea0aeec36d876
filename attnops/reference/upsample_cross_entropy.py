"""`upsample_cross_entropy` in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ._labels import int64_labels
from ._resize import resize


def upsample_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = 255,
    align_corners: bool = False,
    reduction: str = "mean",
    keep_threshold: float | None = None,
    min_kept: int = 0,
    label_smoothing: float = 0.0,
    avg_non_ignore: bool = True,
) -> Tensor:
    """The definition of `attnops.upsample_cross_entropy`, with the full-resolution logits; every
    step in the dtype of its arguments.
    """
    labels, ignored = int64_labels(target, ignore_index)
    valid = labels != ignored
    # Ignored pixels have no part in the gradient either, whatever their logits are.
    full = torch.where(valid.unsqueeze(1), resize(logits, labels.shape[1:], align_corners), 0)
    true = torch.where(valid, labels, 0)
    log_probabilities = full.log_softmax(dim=1)
    log_probability = log_probabilities.gather(1, true.unsqueeze(1)).squeeze(1)
    weights = valid.to(full.dtype) if weight is None else weight[true] * valid
    losses = torch.where(valid, -log_probability * weights, 0)
    if label_smoothing:
        of_classes = 1 if weight is None else weight.view(-1, 1, 1)
        uniform = -(of_classes * log_probabilities).mean(dim=1)
        losses = (1 - label_smoothing) * losses
        losses = losses + label_smoothing * torch.where(valid, uniform, 0)
    if keep_threshold is not None:
        return mined_mean(losses[valid], log_probability[valid].exp(), keep_threshold, min_kept)
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    return losses.sum() / (weights.sum() if avg_non_ignore else losses.numel())


def mined_mean(losses: Tensor, probability: Tensor, keep_threshold: float, min_kept: int) -> Tensor:
    """Mean of the losses whose `probability` of the true class is small enough; 0 if none is."""
    if losses.numel() == 0:
        return losses.sum()
    ordered = probability.detach().sort().values
    threshold = ordered[min(min_kept, len(ordered) - 1)].clamp(min=keep_threshold)
    kept = losses[probability < threshold]
    return kept.mean() if kept.numel() else losses.sum() * 0
