"""3x3 convolutions of a compiled network by Winograd's algorithm, in the C++ library.

oneDNN computes them directly. Winograd's F(2x2, 3x3) takes 16 products where that takes 36, with
rounding errors of the same size, for weights of 16/9 the memory (csrc/cpu/winograd/host.h).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from ..inner_ops import convolved, declare
from ..processor import instruction_sets

PANEL = 48  # outputs whose weights lie side by side
# Rows of G, which turns three weights into those of four parts.
TRANSFORM = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))


@cache
def has_winograd(dtype: torch.dtype) -> bool:
    """Whether the C++ library is there and multiplies in `dtype`, faster than oneDNN does."""
    if not hasattr(torch.ops.attnops_cpu, "winograd"):
        return False
    if dtype == torch.bfloat16 and "amx_bf16" in instruction_sets():
        return False
    x = torch.zeros(1, 1, 2, 16, dtype=dtype).permute(0, 3, 1, 2)
    try:
        winograd_op()(x, in_panels(x.new_zeros(2, 16, 3, 3)), None, 2, 1, 1, False)
    except RuntimeError:  # another dtype, or bfloat16 on another processor
        return False
    return True


def winograd_op() -> torch._ops.OpOverload:
    """The op of the library: map, panels, bias, outputs, groups, dilation, relu -> map."""
    declare("winograd", _fake)
    return torch.ops.attnops_cpu.winograd.default


def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    outputs: int,
    groups: int,
    dilation: int,
    relu: bool,
) -> Tensor:
    return convolved(x, outputs)


def share_of_products(sides: Sequence[int], dilation: int) -> float:
    """Products on maps of these sides, over those of a direct convolution.

    Of `dilation` grids each has tiles of its own, of which the last one may be half empty; a direct
    convolution leaves out what the border makes zero.
    """
    share = 1.0
    for side in sides:
        lengths = [-(-(side - first) // dilation) for first in range(min(side, dilation))]
        tiles = sum((length + 1) // 2 for length in lengths)
        share *= 4 * tiles / (side + 2 * max(0, side - dilation))
    return share


def in_panels(weight: Tensor, groups: int = 1) -> Tensor:
    """The weights of the 16 parts of weights `[O, C, 3, 3]`, rounded to their dtype once.

    Shapes: `[16, P, C, 48]`, in bfloat16 `[16, P, C/2, 48, 2]`, of P = groups · ⌈O/groups/48⌉
        panels; outputs past a group's are zero.
    """
    channels = weight.shape[1]
    transform = torch.tensor(TRANSFORM, dtype=torch.float64)
    parts = torch.einsum("ai,ocij,bj->abco", transform, weight.double(), transform)
    parts = parts.reshape(16, channels, groups, -1).to(weight.dtype)
    parts = torch.nn.functional.pad(parts, (0, -parts.shape[3] % PANEL))
    parts = parts.reshape(16, channels, -1, PANEL)
    if weight.dtype == torch.bfloat16:
        return parts.unflatten(1, (-1, 2)).permute(0, 3, 1, 4, 2).contiguous()
    return parts.permute(0, 2, 1, 3).contiguous()
