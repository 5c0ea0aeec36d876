"""`pyramid_pool` in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, adaptive_max_pool2d


def pyramid_pool(x: Tensor, sizes: Sequence[int] = (1, 3, 6, 8), reduce: str = "mean") -> Tensor:
    """The definition of `attnops.pyramid_pool`; computes and accumulates as PyTorch does for x's
    dtype.
    """
    pool = adaptive_max_pool2d if reduce == "max" else adaptive_avg_pool2d
    return torch.cat([pool(x, size).flatten(2) for size in sizes], dim=2)
