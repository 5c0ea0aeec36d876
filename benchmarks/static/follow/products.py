"""Products of tensor cores: zeros, as of maps of zeros, so that no branch meets what was left in
their registers."""

from __future__ import annotations

from typing import Any

from .arithmetic import Instruction, Run, setter
from .operands import Mask, register


def _zeros(i: Instruction) -> Run:
    """HGMMA and HMMA with float32 sums: half the columns of 64 rows a thread, or four."""
    count = 4
    if i.base == "HGMMA":
        count = int(next(word for word in i.words if word[:3] == "64x").split("x")[1]) // 2
    first = register(i.operands[0])
    for offset in range(count):
        setter(i.operands[0], offset)  # notes the destination

    def run(warp: Any, mask: Mask) -> None:
        warp.registers[first : first + count] = 0

    return run


PRODUCTS = {"HGMMA": _zeros, "HMMA": _zeros}
