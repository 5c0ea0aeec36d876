"""Float32 arithmetic and conversions of machine code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .arithmetic import Instruction, Run, setter
from .operands import Mask, integer, number, truth, wide

_BITS, _SIGNED = np.uint32, np.int32
_SINGLE = np.float32


def _as_bits(value: np.ndarray) -> np.ndarray:
    return np.atleast_1d(value).astype(_SINGLE).view(_BITS)


def _arithmetic(i: Instruction) -> Run:
    """FADD, FMUL, FFMA; the product of FFMA is not rounded before the sum."""
    put, reads = setter(i.operands[0]), [number(text) for text in i.operands[1:4]]
    saturates = i.has("SAT")

    def run(warp: Any, mask: Mask) -> None:
        values = [read(warp).astype(np.float64) for read in reads]
        if i.base == "FADD":
            value = values[0] + values[1]
        else:
            value = values[0] * values[1]
            value = value + values[2] if i.base == "FFMA" else value
        put(warp, _as_bits(np.clip(value, 0, 1) if saturates else value), mask)

    return run


def _extreme(i: Instruction) -> Run:
    put, reads = setter(i.operands[0]), [number(text) for text in i.operands[1:3]]
    smaller = truth(i.operands[3])

    def run(warp: Any, mask: Mask) -> None:
        a, b = (read(warp) for read in reads)
        put(warp, _as_bits(np.where(smaller(warp), np.fmin(a, b), np.fmax(a, b))), mask)

    return run


_SPECIAL: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "RCP": lambda x: 1 / x,
    "RSQ": lambda x: 1 / np.sqrt(x),
    "SQRT": np.sqrt,
    "EX2": np.exp2,
    "LG2": np.log2,
    "SIN": np.sin,
    "COS": np.cos,
    "TANH": np.tanh,
}


def _special(i: Instruction) -> Run:
    put, read = setter(i.operands[0]), number(i.operands[1])
    function = next(_SPECIAL[word] for word in i.words if word in _SPECIAL)
    return lambda warp, mask: put(warp, _as_bits(function(read(warp).astype(np.float64))), mask)


def _rounding(i: Instruction) -> Callable[[np.ndarray], np.ndarray]:
    if i.has("FLOOR"):
        return np.floor
    if i.has("CEIL"):
        return np.ceil
    return np.trunc if i.has("TRUNC") else np.rint


def _to_integer(i: Instruction) -> Run:
    put, read, rounded = setter(i.operands[0]), number(i.operands[1]), _rounding(i)
    if i.has("U64"):
        put_high = setter(i.operands[0], 1)

        def run_wide(warp: Any, mask: Mask) -> None:
            value = np.nan_to_num(rounded(read(warp).astype(np.float64)))
            whole = np.clip(value, 0, 1.8446744073709550e19).astype(np.uint64)
            put(warp, (whole & np.uint64(0xFFFFFFFF)).astype(_BITS), mask)
            put_high(warp, (whole >> np.uint64(32)).astype(_BITS), mask)

        return run_wide
    low, high = (0, 2**32 - 1) if i.has("U32") else (-(2**31), 2**31 - 1)

    def run(warp: Any, mask: Mask) -> None:
        value = np.clip(np.nan_to_num(rounded(read(warp).astype(np.float64))), low, high)
        put(warp, (value.astype(np.int64) & 0xFFFFFFFF).astype(_BITS), mask)

    return run


def _from_integer(i: Instruction) -> Run:
    """I2F and I2FP; RP rounds up, which reciprocals of divisors need."""
    is_wide = i.has("U64")
    put, read = setter(i.operands[0]), (wide if is_wide else integer)(i.operands[1])
    kind, upwards = (_BITS if i.has("U32") else _SIGNED), i.has("RP")

    def run(warp: Any, mask: Mask) -> None:
        value = read(warp)
        exact = (value if is_wide else value.view(kind)).astype(np.float64)
        value = exact.astype(_SINGLE)
        if upwards:
            value = np.where(value < exact, np.nextafter(value, _SINGLE(np.inf)), value)
        put(warp, _as_bits(value), mask)

    return run


def _round(i: Instruction) -> Run:
    put, read, rounded = setter(i.operands[0]), number(i.operands[1]), _rounding(i)
    return lambda warp, mask: put(warp, _as_bits(rounded(read(warp))), mask)


def _half_constant(i: Instruction) -> Run | None:
    """HFMA2 of -RZ and RZ: two halves put into a register."""
    if i.operands[1:3] != ["-RZ", "RZ"]:
        return None
    put = setter(i.operands[0])
    halves = np.array([float(text) for text in i.operands[3:5][::-1]], np.float16)
    bits = halves.view(_BITS)
    return lambda warp, mask: put(warp, bits, mask)


FLOATS: dict[str, Callable[[Instruction], Run | None]] = {
    **dict.fromkeys(("FADD", "FMUL", "FFMA"), _arithmetic),
    **dict.fromkeys(("I2F", "I2FP"), _from_integer),
    "FMNMX": _extreme,
    "MUFU": _special,
    "F2I": _to_integer,
    "FRND": _round,
    "HFMA2": _half_constant,
}
