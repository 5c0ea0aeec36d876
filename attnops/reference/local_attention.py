"""`local_attention` in plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

Pair = int | tuple[int, int]


def local_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Pair = 5,
    dilation: Pair = 1,
    scale: float = 1.0,
    border: str = "zero",
) -> Tensor:
    """The definition of `attnops.local_attention`: one shifted map a neighbour; every step in the
    dtype of its arguments.
    """
    scores = local_scores(query, key, kernel_size, dilation, scale, border)
    weights = scores.softmax(dim=1)
    out = torch.zeros_like(value)
    for index, shifted in enumerate(neighbours(value, kernel_size, dilation)):
        out = out + weights[:, index : index + 1] * shifted
    return out


def local_scores(
    query: Tensor,
    key: Tensor,
    kernel_size: Pair = 5,
    dilation: Pair = 1,
    scale: float = 1.0,
    border: str = "zero",
) -> Tensor:
    """Scores `[B, kh*kw, H, W]` before the softmax, neighbours in row-major order.

    A neighbour outside the map scores 0 (border "zero") or minus infinity ("mask").
    """
    shifted = neighbours(key, kernel_size, dilation)
    scores = scale * torch.stack([(query * k).sum(dim=1) for k in shifted], dim=1)
    if border == "zero":
        return scores
    inside = torch.ones_like(key[:1, :1], requires_grad=False)
    inside = torch.cat(list(neighbours(inside, kernel_size, dilation)), dim=1)
    return scores.masked_fill(inside == 0, -torch.inf)


def neighbours(x: Tensor, kernel_size: Pair, dilation: Pair) -> Iterator[Tensor]:
    """Maps of the shape of `x`: at every position one of its neighbours, 0 outside the map."""
    kernel, step = ((p, p) if isinstance(p, int) else p for p in (kernel_size, dilation))
    height, width = x.shape[2:]
    up, left = (d * (k // 2) for k, d in zip(kernel, step, strict=True))
    padded = pad(x, (left, left, up, up))
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            y0, x0 = i * step[0], j * step[1]
            yield padded[:, :, y0 : y0 + height, x0 : x0 + width]
