"""What machine instructions compute, for a warp at a time.

`decode` makes a function of a warp and a mask of its lanes. Integers and float32 are computed as
the device does it (to the last bit where integers are concerned); products of tensor cores are
zero; what only data depends on, such as packed half precision, leaves its destination as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from . import operands
from .arrivals import stands_for_all
from .operands import (
    Mask,
    Read,
    integer,
    number,
    predicate,
    register,
    truth,
    wide,
    writes_predicate,
)

Run = Callable[[Any, Mask], None]
_ONE, _SHIFT = np.uint64(1), np.uint64(32)
_MASK = np.uint64(0xFFFFFFFF)
_SIGNED, _BITS = np.int32, np.uint32


def _low(value: np.ndarray) -> np.ndarray:
    return (value & _MASK).astype(_BITS)


def _high(value: np.ndarray) -> np.ndarray:
    return (value >> _SHIFT).astype(_BITS)


def _extended(value: np.ndarray, signed: bool) -> np.ndarray:
    """32 bits as 64."""
    return value.view(_SIGNED).astype(np.int64).view(np.uint64) if signed else value.astype("u8")


class Instruction:
    """The parts of an instruction's text: words of its name, destinations and sources."""

    def __init__(self, name: str, operands: list[str]) -> None:
        self.base, *self.words = name.split(".")
        self.operands = operands

    def has(self, word: str) -> bool:
        return word in self.words

    def take_predicates(self) -> list[int]:
        """Takes the destinations off that stand as predicates after the first operand."""
        found = []
        while len(self.operands) > 1 and (p := predicate(self.operands[1])) and not p[1]:
            found.append(writes_predicate(p[0]))
            del self.operands[1]
        return found

    def carries(self) -> list[Read]:
        """Takes the predicates off that stand at the end."""
        found = []
        while self.operands and predicate(self.operands[-1]):
            found.insert(0, truth(self.operands.pop()))
        return found


def setter(text: str, offset: int = 0) -> Callable[[Any, np.ndarray, Mask], None]:
    row = register(text)
    if row is None:
        raise NotImplementedError(f"destination {text!r}")
    if row not in (255, 319):
        row += offset
    operands.NOTED.writes.add(row)
    return lambda warp, value, mask: warp.write(row, value, mask)


def _sum(i: Instruction) -> Run:
    """IADD3, IADD3.X, VIADD, UIADD3.64."""
    outs = i.take_predicates()
    carries = i.carries() if i.has("X") else []
    put, sources = setter(i.operands[0]), i.operands[1:]
    if i.has("64"):
        reads, put_high = [wide(text) for text in sources], setter(i.operands[0], 1)

        def run_wide(warp: Any, mask: Mask) -> None:
            total = sum(read(warp) for read in reads)
            put(warp, _low(total), mask)
            put_high(warp, _high(total), mask)

        return run_wide
    # -x is 2^32 - x, so that the carry of a difference says that nothing was borrowed
    signs = [text.startswith("-") and not re.match(r"-\d", text) for text in sources]
    reads = [
        integer(text.lstrip("-") if s else text) for text, s in zip(sources, signs, strict=True)
    ]

    def run(warp: Any, mask: Mask) -> None:
        total = np.zeros(1, np.uint64)
        for read, negative in zip(reads, signs, strict=True):
            value = read(warp).astype(np.uint64)
            total = total + ((_ONE << _SHIFT) - value if negative else value)
        for carry in carries:
            total = total + carry(warp)
        put(warp, _low(total), mask)
        over = total >> _SHIFT
        for index, row in enumerate(outs):
            warp.decide(row, over > index, mask)

    return run


def _multiply_add(i: Instruction) -> Run:
    """IMAD in all its forms."""
    outs = i.take_predicates()
    carries = i.carries() if i.has("X") else []
    signed = not i.has("U32")
    put, (a, b, c) = setter(i.operands[0]), i.operands[1:4]
    read_a, read_b = integer(a), integer(b)
    if i.has("WIDE") or i.has("HI"):
        read_c, high_only = wide(c), i.has("HI")
        put_high = put if high_only else setter(i.operands[0], 1)

        def run_wide(warp: Any, mask: Mask) -> None:
            product = _extended(read_a(warp), signed) * _extended(read_b(warp), signed)
            addend = read_c(warp)
            total = product + addend
            if high_only:
                put(warp, _high(total), mask)
                return
            over = total < addend
            put(warp, _low(total), mask)
            put_high(warp, _high(total), mask)
            for row in outs:
                warp.decide(row, over, mask)

        return run_wide
    read_c = integer(c)

    def run(warp: Any, mask: Mask) -> None:
        total = read_a(warp) * read_b(warp) + read_c(warp)
        for carry in carries:
            total = total + carry(warp).astype(_BITS)
        put(warp, total, mask)

    return run


def _shifted_add(i: Instruction) -> Run:
    """LEA: (a << shift) + b, or the upper word of that."""
    outs = i.take_predicates()
    carries = i.carries() if i.has("X") else []
    put, read_a, read_b = setter(i.operands[0]), integer(i.operands[1]), integer(i.operands[2])
    shift = np.uint64(int(i.operands[-1], 16))
    high, sign = i.has("HI"), i.has("SX32")
    read_c = integer(i.operands[3]) if high and not sign else None

    def run(warp: Any, mask: Mask) -> None:
        value = _extended(read_a(warp), sign)
        if read_c is not None:
            value = value | read_c(warp).astype(np.uint64) << _SHIFT
        value = value << shift
        part = _high(value) if high else _low(value)
        total = part.astype(np.uint64) + read_b(warp)
        for carry in carries:
            total = total + carry(warp)
        put(warp, _low(total), mask)
        for row in outs:
            warp.decide(row, total >> _SHIFT > 0, mask)

    return run


def _table(reads: list[Read], lut: int, warp: Any) -> np.ndarray:
    """Bitwise function of three values; booleans likewise."""
    a, b, c = (read(warp) for read in reads)
    total = np.zeros_like(a)
    for index in range(8):
        if lut >> index & 1:
            term = a if index & 4 else ~a
            term = term & (b if index & 2 else ~b)
            total = total | term & (c if index & 1 else ~c)
    return total


def _logic(i: Instruction) -> Run:
    """LOP3.LUT."""
    decided = predicate(i.operands[0])
    if decided:
        writes_predicate(decided[0])
        del i.operands[0]
    put, reads = setter(i.operands[0]), [integer(text) for text in i.operands[1:4]]
    lut = int(i.operands[4], 16)

    def run(warp: Any, mask: Mask) -> None:
        value = _table(reads, lut, warp)
        put(warp, value, mask)
        if decided:
            warp.decide(decided[0], value != 0, mask)

    return run


def _predicate_logic(i: Instruction) -> Run:
    """PLOP3.LUT."""
    rows = [writes_predicate(predicate(text)[0]) for text in i.operands[:2]]
    reads = [truth(text) for text in i.operands[2:5]]
    tables = [int(text, 16) for text in i.operands[5:7]]

    def run(warp: Any, mask: Mask) -> None:
        values = [_table(reads, lut, warp) for lut in tables]
        for row, value in zip(rows, values, strict=True):
            warp.decide(row, value, mask)

    return run


def _shift(i: Instruction) -> Run:
    """SHF: the pair (c:a) shifted by b."""
    put = setter(i.operands[0])
    read_a, read_b, read_c = map(integer, i.operands[1:4])
    left, wraps, high = i.has("L"), i.has("W"), i.has("HI")
    limit = 63 if i.has("U64") or i.has("S64") else 32
    signed = i.has("S32") or i.has("S64")
    single = left and not high  # SHF.L.U32: the lower word

    def run(warp: Any, mask: Mask) -> None:
        amount = read_b(warp) & _BITS(31) if wraps else np.minimum(read_b(warp), _BITS(limit))
        amount = amount.astype(np.uint64)
        value = read_a(warp).astype(np.uint64) | read_c(warp).astype(np.uint64) << _SHIFT
        if left:
            value = value << amount
        else:
            value = (
                (value.view(np.int64) >> amount.view(np.int64)).view(np.uint64)
                if signed
                else (value >> amount)
            )
        put(warp, _low(value) if single or not high else _high(value), mask)

    return run


_COMPARE = {
    "LT": np.less,
    "LE": np.less_equal,
    "GT": np.greater,
    "GE": np.greater_equal,
    "EQ": np.equal,
    "NE": np.not_equal,
}


def _combined(i: Instruction, compare: Callable[[Any], np.ndarray], rest: list[str]) -> Run:
    """Writes a comparison, and its contrary, joined with a predicate."""
    rows = [writes_predicate(predicate(text)[0]) for text in i.operands[:2]]
    other = truth(rest[0]) if rest else None
    join = np.logical_or if i.has("OR") else np.logical_xor if i.has("XOR") else np.logical_and

    def run(warp: Any, mask: Mask) -> None:
        found = compare(warp)
        second = other(warp) if other else True
        warp.decide(rows[0], join(found, second), mask)
        warp.decide(rows[1], join(~found, second), mask)

    return run


def _compare_integers(i: Instruction) -> Run:
    """ISETP; with EX the upper words of 64 bits, of which the last predicate says the lower."""
    word = next(word for word in i.words if word in _COMPARE)
    function, signed = _COMPARE[word], not i.has("U32")
    read_a, read_b = integer(i.operands[2]), integer(i.operands[3])
    rest = i.operands[4:]
    below = truth(rest[-1]) if i.has("EX") else None

    def compare(warp: Any) -> np.ndarray:
        a, b = read_a(warp), read_b(warp)
        if warp.arrivals is not None and word in ("EQ", "NE"):
            b = np.where(stands_for_all(a), a, b)
            a = np.where(stands_for_all(b), b, a)
        if signed:
            a, b = a.view(_SIGNED), b.view(_SIGNED)
        if below is None:
            return function(a, b)
        if word == "NE":
            return (a != b) | below(warp)
        strict = {"LT": a < b, "LE": a < b, "GT": a > b, "GE": a > b, "EQ": False}[word]
        return strict | (a == b) & below(warp)

    return _combined(i, compare, rest[:1])


def _compare_floats(i: Instruction) -> Run:
    word = next(w for w in i.words if w in ("NUM", "NAN") or w.removesuffix("U") in _COMPARE)
    read_a, read_b = number(i.operands[2]), number(i.operands[3])

    def compare(warp: Any) -> np.ndarray:
        a, b = read_a(warp), read_b(warp)
        unordered = np.isnan(a) | np.isnan(b)
        if word in ("NUM", "NAN"):
            return ~unordered if word == "NUM" else unordered
        found = _COMPARE[word.removesuffix("U")](a, b)
        return found | unordered if word.endswith("U") else found & ~unordered

    return _combined(i, compare, i.operands[4:5])


def _select(i: Instruction) -> Run:
    put, read_a, read_b = setter(i.operands[0]), *map(integer, i.operands[1:3])
    chosen = truth(i.operands[3])
    return lambda warp, mask: put(warp, np.where(chosen(warp), read_a(warp), read_b(warp)), mask)


def _extreme(i: Instruction) -> Run:
    """VIMNMX and VIADDMNMX: the smaller where the predicate holds, else the larger."""
    added = i.base.endswith("VIADDMNMX")
    smaller = truth(i.operands.pop())
    put, *reads = setter(i.operands[0]), *map(integer, i.operands[1:])
    kind = _BITS if i.has("U32") else _SIGNED

    def run(warp: Any, mask: Mask) -> None:
        values = [read(warp) for read in reads]
        a = values[0] + values[1] if added else values[0]
        a, b = a.view(kind), values[-1].view(kind)
        low, high = np.minimum(a, b), np.maximum(a, b)
        put(warp, np.where(smaller(warp), low, high).astype(kind).view(_BITS), mask)

    return run


INTEGERS: dict[str, Callable[[Instruction], Run]] = {
    **dict.fromkeys(("IADD3", "VIADD", "IADD"), _sum),
    **dict.fromkeys(("VIMNMX", "IMNMX", "VIADDMNMX"), _extreme),
    **dict.fromkeys(("SEL", "FSEL"), _select),
    "IMAD": _multiply_add,
    "LEA": _shifted_add,
    "LOP3": _logic,
    "PLOP3": _predicate_logic,
    "SHF": _shift,
    "ISETP": _compare_integers,
    "FSETP": _compare_floats,
}
