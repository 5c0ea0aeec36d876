"""Products of maps with matrices, by PyTorch: of rows of channels, or item by item.

A map with its channels last (`inner`) is a matrix of positions by channels; a contiguous one has a
matrix an item.
"""

from __future__ import annotations

import torch


def by_position(x: torch.Tensor) -> torch.Tensor:
    """A map with channels last as [B * H * W, C]."""
    return x.movedim(1, -1).flatten(0, 2)


def apply(
    matrix: torch.Tensor, x: torch.Tensor, inner: bool, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """matrix [D, C] times x [B, C, H, W], plus bias [D]: [B, D, H, W] in the layout of x."""
    batch, _channels, height, width = x.shape
    if inner:
        rows, transposed = by_position(x), matrix.t()
        out = rows @ transposed if bias is None else torch.addmm(bias, rows, transposed)
        return out.view(batch, height, width, -1).movedim(-1, 1)
    items, many = x.flatten(2), matrix.expand(batch, -1, -1)
    out = torch.bmm(many, items) if bias is None else torch.baddbmm(bias[:, None], many, items)
    return out.view(batch, -1, height, width)


def outer(a: torch.Tensor, b: torch.Tensor, inner: bool) -> torch.Tensor:
    """[A, B]: sum over positions of the products of channels of a with those of b."""
    if inner:
        return by_position(a).t() @ by_position(b)
    return torch.bmm(a.flatten(2), b.flatten(2).mT).sum(0)
