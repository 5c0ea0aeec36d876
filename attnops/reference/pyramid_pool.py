"""`pyramid_pool` in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, adaptive_max_pool2d

from ._exporting import is_portable


def pyramid_pool(x: Tensor, sizes: Sequence[int] = (1, 3, 6, 8), reduce: str = "mean") -> Tensor:
    """The definition of `attnops.pyramid_pool`; computes and accumulates as PyTorch does for x's
    dtype.
    """
    if is_portable():
        return (_largest if reduce == "max" else _means)(x, list(sizes))
    pool = adaptive_max_pool2d if reduce == "max" else adaptive_avg_pool2d
    return torch.cat([pool(x, size).flatten(2) for size in sizes], dim=2)


def _means(x: Tensor, sizes: list[int]) -> Tensor:
    """R·X·Cᵀ for every grid, as ONNX has no pooling to any grid; R and C hold the weights of rows
    and columns in its bins. C of all grids is one product, the only one that reads the whole map.
    """
    if sizes == [1]:
        return x.mean(dim=(2, 3), keepdim=True).flatten(2)
    rows, columns = ([_weights(n, side, x) for n in sizes] for side in x.shape[2:])
    parts = (x @ torch.cat(columns).mT).split(sizes, dim=3)
    return torch.cat([(r @ part).flatten(2) for r, part in zip(rows, parts, strict=True)], dim=2)


def _largest(x: Tensor, sizes: list[int]) -> Tensor:
    """The maximum over the rows, then over the columns of every bin; other values are masked."""
    found = []
    for n in sizes:
        rows, columns = (_inside(n, side, x) for side in x.shape[2:])
        bands = [torch.where(row[:, None], x, -torch.inf).amax(dim=2) for row in rows]
        band = torch.stack(bands, dim=2)
        cells = [torch.where(column, band, -torch.inf).amax(dim=3) for column in columns]
        found.append(torch.stack(cells, dim=3).flatten(2))
    return torch.cat(found, dim=2)


def _weights(n: int, side: int, like: Tensor) -> Tensor:
    """`[n, side]`: what every position weighs in the mean of every bin."""
    inside = _inside(n, side, like).to(like.dtype)
    return inside / inside.sum(dim=1, keepdim=True)


def _inside(n: int, side: int, like: Tensor) -> Tensor:
    """`[n, side]`: whether a position lies in a bin, floor(i·side/n) to ceil((i + 1)·side/n)."""
    index = torch.arange(n, device=like.device)[:, None]
    position = torch.arange(side, device=like.device)
    return ((position + 1) * n > index * side) & (position * n < (index + 1) * side)
