"""Machine instructions on single bits and bytes, and plain moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .arithmetic import Instruction, Run, setter
from .operands import Mask, integer

_BITS, _SIGNED = np.uint32, np.int32
_SHIFT = np.uint64(32)


def _permute(i: Instruction) -> Run:
    put, read_a, read_s, read_b = setter(i.operands[0]), *map(integer, i.operands[1:4])

    def run(warp: Any, mask: Mask) -> None:
        pair = read_a(warp).astype(np.uint64) | read_b(warp).astype(np.uint64) << _SHIFT
        chosen, value = read_s(warp), np.zeros(1, np.uint64)
        for index in range(4):
            pick = chosen >> _BITS(4 * index) & _BITS(15)
            byte = pair >> ((pick & _BITS(7)).astype(np.uint64) * np.uint64(8)) & np.uint64(255)
            sign = np.where(byte >> np.uint64(7) > 0, np.uint64(255), np.uint64(0))
            byte = np.where(pick & _BITS(8), sign, byte)
            value = value | byte << np.uint64(8 * index)
        put(warp, value.astype(_BITS), mask)

    return run


def _sign_extend(i: Instruction) -> Run:
    """SGXT: the lower b bits of a."""
    put, read_a, read_b = setter(i.operands[0]), *map(integer, i.operands[1:3])
    signed = not i.has("U32")

    def run(warp: Any, mask: Mask) -> None:
        spare = (_BITS(32) - np.minimum(read_b(warp), _BITS(32))).astype(np.int64)
        value = read_a(warp).astype(np.int64) << spare & np.int64(0xFFFFFFFF)
        value = value.astype(_BITS).view(_SIGNED).astype(np.int64) if signed else value
        put(warp, (value >> spare & np.int64(0xFFFFFFFF)).astype(_BITS), mask)

    return run


def _move(i: Instruction) -> Run:
    put, read = setter(i.operands[0]), integer(i.operands[1])
    return lambda warp, mask: put(warp, read(warp), mask)


def _bits_of(i: Instruction) -> Run:
    """POPC, FLO, BREV, IABS."""
    put, read = setter(i.operands[0]), integer(i.operands[-1])

    def run(warp: Any, mask: Mask) -> None:
        value = read(warp)
        if i.base.endswith("IABS"):
            put(warp, np.abs(value.view(_SIGNED)).view(_BITS), mask)
            return
        bits = np.unpackbits(value.astype(">u4").view(np.uint8)).reshape(-1, 32)
        if i.base.endswith("POPC"):
            found = bits.sum(1).astype(_BITS)
        elif i.base.endswith("BREV"):
            found = np.packbits(bits[:, ::-1].copy()).view(">u4").astype(_BITS)
        else:
            found = np.where(bits.any(1), 31 - bits.argmax(1), -1).astype(np.int64)
            found = (found & 0xFFFFFFFF).astype(_BITS)
        put(warp, found, mask)

    return run


BITS: dict[str, Callable[[Instruction], Run]] = {
    **dict.fromkeys(("POPC", "FLO", "BREV", "IABS"), _bits_of),
    **dict.fromkeys(("MOV", "R2UR"), _move),
    "PRMT": _permute,
    "SGXT": _sign_extend,
}
