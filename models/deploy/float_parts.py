"""Weights in float32 as sums of bfloat16 numbers, for products by the tiles of AMX.

AMX multiplies bfloat16 sixteen times as fast as other instructions float32. Three parts of 8 bits
hold all 24 of a float, and six products of parts hold a product to the precision of float32
(csrc/cpu/common/float_parts.h).
"""

from __future__ import annotations

import torch
from torch import Tensor

FLOAT_PARTS = 3
_HALF_A_UNIT, _UPPER = 0x8000, -0x10000  # of the 16 bits that a part leaves to the next


def float_parts(x: Tensor) -> Tensor:
    """Parts of `x` in float32, which add up to it, the largest first.

    Shapes: `[*]` -> `[3, *]` in bfloat16.
    """
    parts = []
    for _ in range(FLOAT_PARTS - 1):
        part = ((x.view(torch.int32) + _HALF_A_UNIT) & _UPPER).view(torch.float32)
        parts.append(part)
        x = x - part
    return torch.stack([*parts, x]).bfloat16()
