"""3x3 max pooling of a compiled network, in the C++ library (csrc/cpu/max_pool/host.h)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attnops.nn.functional import runs_as_built

from ..backbones.pooling import MaxPool3x3
from .inner_ops import declare, runs_inner_ops


def use_library_pools(network: nn.Module) -> None:
    """Put a `LibraryPool` in the place of every `MaxPool3x3` that does as it was built."""
    if not runs_inner_ops() or not hasattr(torch.ops.attnops_cpu, "max_pool"):
        return
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if runs_as_built(child, MaxPool3x3):
                setattr(module, name, LibraryPool(child))


class LibraryPool(nn.Module):
    """What a `MaxPool3x3` computes, by the C++ library where it is compiled.

    Args:
        pool: asked for its stride and `ceil_mode`.
    """

    def __init__(self, pool: MaxPool3x3) -> None:
        super().__init__()
        self.pool = pool
        declare("max_pool", _fake)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            return self.pool(x)
        x = x.contiguous(memory_format=torch.channels_last)
        return torch.ops.attnops_cpu.max_pool(x, self.pool.stride, self.pool.ceil_mode)


def _fake(x: Tensor, stride: int, ceil_mode: bool) -> Tensor:
    # With ceil_mode the last window may have its middle behind the last place.
    more = stride - 1 if ceil_mode else 0
    sides = ((side - 1 + more) // stride + 1 for side in x.shape[2:])
    size = (*x.shape[:2], *sides)
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
