"""Convolutions of a compiled network in bfloat16 by the tiles of AMX, in the C++ library.

oneDNN multiplies in tiles, too, and takes most operands from the third-level cache, which gives
them more slowly than they are multiplied. The library's way is that of
csrc/cpu/tiled_convolution/host.h.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

STEP = 32  # channels and outputs that are multiplied at a time
LEAST_CHANNELS = 16  # fewer, and most of a step would be zeros

_library = torch.library.Library("attnops_cpu", "FRAGMENT")
_known: list[bool] = []


@cache
def has_tiles(dtype: torch.dtype) -> bool:
    """Whether the C++ library is there and multiplies in tiles of `dtype`."""
    if dtype != torch.bfloat16 or not hasattr(torch.ops.attnops_cpu, "tiled_convolution"):
        return False
    x = torch.zeros(1, STEP, 1, 1, dtype=dtype)
    try:
        tiled_op()(x, in_tiles(x), None, None, 1, 1, 1, False)
    except RuntimeError:  # another processor, or ATTNOPS_ISA leaves AMX out
        return False
    return True


def tiled_op() -> torch._ops.OpOverload:
    """The op of the library: map, tiles, bias, residual, outputs, side, dilation, relu -> map."""
    if not _known:
        torch.library.register_fake("attnops_cpu::tiled_convolution", _fake, lib=_library)
        _known.append(True)
    return torch.ops.attnops_cpu.tiled_convolution.default


def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    outputs: int,
    side: int,
    dilation: int,
    relu: bool,
) -> Tensor:
    # Strides of this memory format as the compiler knows them: it asks whether maps have them.
    size = (x.shape[0], outputs, *x.shape[2:])
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def in_tiles(weight: Tensor) -> Tensor:
    """Weights `[O, C, k, k]` as the library takes them.

    Shapes: `[O/32, C/32, k*k, 2, 16, 16, 2]`, outputs by pairs of channels, O and C padded with
        zeros to multiples of 32.
    """
    outputs, channels, side, _ = weight.shape
    padding = (0, 0, 0, 0, 0, -channels % STEP, 0, -outputs % STEP)
    padded = torch.nn.functional.pad(weight, padding)
    parts = padded.reshape(-(-outputs // STEP), 2, 16, -(-channels // STEP), 16, 2, side * side)
    return parts.permute(0, 3, 6, 1, 4, 2, 5).contiguous()
