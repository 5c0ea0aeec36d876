"""Convolutions of a compiled network by the tiles of AMX, in the C++ library.

oneDNN multiplies bfloat16 in tiles, too. The library (csrc/cpu/tiled_convolution/host.h) keeps
weights in the second-level cache while maps go past them, and does with the result what else a
network does. It multiplies float32 there as well, in parts (`float_parts`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..float_parts import float_parts
from ..inner_ops import convolved, declare, uses_tiles

STEP = 32  # channels and outputs that are multiplied at a time
# Channels and outputs: of fewer, most of a step would be zeros.
LEAST_CHANNELS = {torch.bfloat16: 16, torch.float32: 32}


def has_tiles(dtype: torch.dtype) -> bool:
    """Whether the C++ library is there and multiplies in tiles of `dtype`."""
    known = hasattr(torch.ops.attnops_cpu, "tiled_convolution")
    return known and dtype in (torch.bfloat16, torch.float32) and uses_tiles()


def tiled_op() -> torch._ops.OpOverload:
    """The op of the library: map, tiles, bias, gate, residual, factor, scale, outputs, side,
    dilation, groups, activation (of `ACTIVATIONS`, by number), whether residual and result are
    float, stride (1, or 2 of 3x3 weights) -> map.

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
    stride: int = 1,
) -> Tensor:
    dtype = torch.float32 if wide else torch.bfloat16
    return convolved(x, outputs, dtype, stride)


def takes_stride(weight: Tensor, stride: Sequence[int], dilation: Sequence[int]) -> bool:
    """Whether a convolution with these is left to tiles: stride 2 in float32 alone, since oneDNN
    multiplies bfloat16 there as fast.
    """
    halves = weight.dtype == torch.float32 and weight.shape[2] == 3 and set(dilation) == {1}
    return set(stride) == {1} or (halves and set(stride) == {2})


def in_tiles(weight: Tensor) -> Tensor:
    """Weights `[O, C, k, k]`, C of a group, as the library takes them.

    Shapes: `[O/32, C/32, k*k, 2, 16, 16, 2]`, outputs by pairs of channels, O and C padded with
        zeros to multiples of 32. In float32 the three parts come before the last four dimensions.
    """
    if weight.dtype == torch.float32:
        return torch.stack([in_tiles(part) for part in float_parts(weight)], 3)
    outputs, channels, side, _ = weight.shape
    padding = (0, 0, 0, 0, 0, -channels % STEP, 0, -outputs % STEP)
    padded = torch.nn.functional.pad(weight, padding)
    parts = padded.reshape(-(-outputs // STEP), 2, 16, -(-channels // STEP), 16, 2, side * side)
    return parts.permute(0, 3, 6, 1, 4, 2, 5).contiguous()
