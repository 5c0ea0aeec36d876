"""`merge_scales` in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._resize import resize


def merge_scales(
    scores: Sequence[Tensor],
    attention_logits: Tensor | None = None,
    reduce: str = "attention",
    align_corners: bool = True,
) -> Tensor:
    """The definition of `attnops.merge_scales`; every step in the dtype of its arguments."""
    size = (scores[0] if attention_logits is None else attention_logits).shape[2:]
    return merge_at(scores, attention_logits, size, reduce, align_corners)


def merge_at(
    scores: Sequence[Tensor],
    attention_logits: Tensor | None,
    size: Sequence[int],
    reduce: str,
    align_corners: bool,
) -> Tensor:
    """`merge_scales` at a given size."""
    resized = torch.stack([resize(s, size, align_corners) for s in scores])
    if reduce == "mean":
        return resized.mean(dim=0)
    if reduce == "max":
        return resized.max(dim=0).values
    weights = attention_logits.softmax(dim=1).transpose(0, 1).unsqueeze(2)
    return (weights * resized).sum(dim=0)
