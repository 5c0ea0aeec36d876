"""`anchor_attention` in plain PyTorch."""

from __future__ import annotations

from torch import Tensor


def anchor_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None = None,
    *,
    bias: Tensor | None = None,
) -> Tensor:
    """The definition of `attnops.anchor_attention`; every step in the dtype of its arguments."""
    scores = anchor_scores(query.flatten(2), key, scale, bias)
    out = value @ scores.softmax(dim=2).transpose(1, 2)
    return out.reshape(*value.shape[:2], *query.shape[2:])


def anchor_scores(
    query: Tensor, key: Tensor, scale: float | None = None, bias: Tensor | None = None
) -> Tensor:
    """Scores `[B, N, S]` before the softmax, for query `[B, Ck, N]` and key `[B, Ck, S]`."""
    factor = key.shape[1] ** -0.5 if scale is None else scale
    scores = factor * (query.transpose(1, 2) @ key)
    return scores if bias is None else scores + bias[:, None, :]
