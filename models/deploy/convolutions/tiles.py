"""Convolutions of a compiled network in bfloat16 by the tiles of AMX, in the C++ library.

oneDNN multiplies in tiles, too. The library (csrc/cpu/tiled_convolution/host.h) keeps weights in
the second-level cache while maps go past them, and does with the result what else a network does.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from ..inner_ops import convolved, declare

STEP = 32  # channels and outputs that are multiplied at a time
LEAST_CHANNELS = 16  # fewer, and most of a step would be zeros


@cache
def has_tiles(dtype: torch.dtype) -> bool:
    """Whether the C++ library is there and multiplies in tiles of `dtype`."""
    if dtype != torch.bfloat16 or not hasattr(torch.ops.attnops_cpu, "tiled_convolution"):
        return False
    x = torch.zeros(1, STEP, 1, 1, dtype=dtype)
    try:
        tiled_op()(x, in_tiles(x), *[None] * 5, 1, 1, 1, 1, 0, False)
    except RuntimeError:  # another processor, or ATTNOPS_ISA leaves AMX out
        return False
    return True


def tiled_op() -> torch._ops.OpOverload:
    """The op of the library: map, tiles, bias, gate, residual, factor, scale, outputs, side,
    dilation, groups, activation (of `ACTIVATIONS`, by number), whether residual and result are
    float -> map.

    It gives `activation((convolution of scale * map + bias) * gate + factor * residual)`.
    """
    declare("tiled_convolution", _fake)
    return torch.ops.attnops_cpu.tiled_convolution.default


def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gate: Tensor | None,
    residual: Tensor | None,
    factor: Tensor | None,
    scale: Tensor | None,
    outputs: int,
    side: int,
    dilation: int,
    groups: int,
    activation: int,
    wide: bool,
) -> Tensor:
    return convolved(x, outputs, torch.float32 if wide else torch.bfloat16)


def in_tiles(weight: Tensor) -> Tensor:
    """Weights `[O, C, k, k]`, C of a group, as the library takes them.

    Shapes: `[O/32, C/32, k*k, 2, 16, 16, 2]`, outputs by pairs of channels, O and C padded with
        zeros to multiples of 32.
    """
    outputs, channels, side, _ = weight.shape
    padding = (0, 0, 0, 0, 0, -channels % STEP, 0, -outputs % STEP)
    padded = torch.nn.functional.pad(weight, padding)
    parts = padded.reshape(-(-outputs // STEP), 2, 16, -(-channels // STEP), 16, 2, side * side)
    return parts.permute(0, 3, 6, 1, 4, 2, 5).contiguous()
