"""Operands of machine instructions: what they name, and how a warp reads and writes them.

A warp's registers are rows of an array [320, 32]: 255 ordinary ones and RZ, then 63 uniform ones
and URZ, which are kept lane by lane like the others. Predicates are rows of [16, 32] likewise.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

LANES = 32
RZ, URZ, PT, UPT = 255, 319, 7, 15
UNIFORM = 256  # the first uniform register

_REGISTER = re.compile(r"^(U?)R(Z|\d+)")
_PREDICATE = re.compile(r"^(!?)(U?)P(T|\d)$")
_CONSTANT = re.compile(r"^c\[(0x[0-9a-f]+)\]\[(.*)\]$")
_TERM = re.compile(r"([+-]?)(U?R(?:Z|\d+)|0x[0-9a-f]+)((?:\.\w+)*)")
_SPECIAL = {"INF": 0x7F800000, "QNAN": 0x7FC00000, "SNAN": 0x7F800001}

Mask = Any  # None: all lanes, else an array of 32 booleans
Read = Callable[[Any], np.ndarray]


PREDICATES = 320  # in sets of what an instruction uses, predicates come after the registers


@dataclass
class Uses:
    """What an instruction reads and writes, noted while it is decoded.

    Attributes:
        data: of `reads`, what a store only carries to memory.
    """

    reads: set[int] = field(default_factory=set)
    writes: set[int] = field(default_factory=set)
    data: set[int] = field(default_factory=set)


NOTED = Uses()  # of the instruction that is being decoded


def noting() -> Uses:
    """A fresh note, for the next instruction."""
    global NOTED
    NOTED = Uses()
    return NOTED


def writes_predicate(row: int) -> int:
    """Notes a destination."""
    NOTED.writes.add(PREDICATES + row)
    return row


@dataclass(frozen=True)
class Operand:
    """Text as it stands, taken apart: what is named, and the signs and shapes on it."""

    text: str
    negative: bool = False
    absolute: bool = False
    inverted: bool = False
    suffix: str = ""

    @classmethod
    def of(cls, text: str) -> Operand:
        negative = absolute = inverted = False
        text = text.strip()
        if text.startswith("~"):
            text, inverted = text[1:], True
        if re.match(r"^-(?=[URc|\[I])", text) or text.startswith("-|"):
            text, negative = text[1:], True
        suffix = ""
        if text.startswith("|"):
            text, _, suffix = text[1:].partition("|")
            absolute = True
        found = _REGISTER.match(text)
        if found:
            text, suffix = found[0], text[found.end() :] + suffix
        return cls(text, negative, absolute, inverted, suffix)


def split(operands: str) -> list[str]:
    """The operands of an instruction, at the commas outside brackets."""
    parts, depth, start = [], 0, 0
    for index, character in enumerate(operands):
        depth += (character in "[{(") - (character in "]})")
        if character == "," and depth == 0:
            parts.append(operands[start:index].strip())
            start = index + 1
    rest = operands[start:].strip()
    return [*parts, rest] if rest else parts


def register(text: str) -> int | None:
    """The row of a register."""
    found = _REGISTER.match(text.strip().lstrip("-|~"))
    if found is None:
        return None
    if found[2] == "Z":
        return URZ if found[1] else RZ
    return int(found[2]) + (UNIFORM if found[1] else 0)


def predicate(text: str) -> tuple[int, bool] | None:
    """The row of a predicate, and whether it is negated."""
    found = _PREDICATE.match(text.strip())
    if found is None:
        return None
    row = (7 if found[3] == "T" else int(found[3])) + (8 if found[2] else 0)
    return row, bool(found[1])


def immediate(text: str) -> int | None:
    """The 32 bits of a number; numbers with a point are float32."""
    text = text.strip()
    if re.fullmatch(r"-?0x[0-9a-f]+", text):
        return int(text, 16) & 0xFFFFFFFF
    if re.fullmatch(r"-?\d+", text):
        return int(text) & 0xFFFFFFFF
    sign = 0x80000000 if text.startswith("-") else 0
    if text.lstrip("+-") in _SPECIAL:
        return _SPECIAL[text.lstrip("+-")] | sign
    try:
        return struct.unpack("<I", struct.pack("<f", float(text)))[0]
    except (ValueError, OverflowError):
        return None


def _number_of(text: str) -> int:
    """The bits of an immediate of a floating-point instruction: 1 is 1.0 there."""
    plain = re.fullmatch(r"-?\d+", text.strip())
    if plain:
        return struct.unpack("<I", struct.pack("<f", float(text)))[0]
    found = immediate(text)
    if found is None:
        raise NotImplementedError(f"operand {text!r}")
    return found


def constant_reader(text: str, offset: int = 0, bits: int = 0) -> Read | None:
    """Reads 32 bits of a constant bank, `offset` bytes further; or just `bits` of them."""
    found = _CONSTANT.match(text)
    if found is None:
        return None
    bank, place = int(found[1], 16), address(f"[{found[2]}]")

    def read(warp: Any) -> np.ndarray:
        places = place(warp) + np.uint64(offset)
        words = warp.constants(bank, places)
        if not bits:
            return words
        words = words >> ((places & np.uint64(3)) * np.uint64(8)).astype(np.uint32)
        return words & np.uint32((1 << bits) - 1)

    return read


def _base_reader(operand: Operand, offset: int, is_float: bool) -> Read:
    row = register(operand.text)
    if row is not None:
        row = row if row in (RZ, URZ) else row + offset
        NOTED.reads.add(row)
        return lambda warp: warp.registers[row]
    constant = constant_reader(operand.text, 4 * offset)
    if constant is not None:
        return constant
    bits = _number_of(operand.text) if is_float else immediate(operand.text)
    if bits is None:
        raise NotImplementedError(f"operand {operand.text!r}")
    if offset:  # the upper half of an immediate: its sign
        bits = 0xFFFFFFFF if bits >> 31 else 0
    value = np.array([bits], np.uint32)
    return lambda warp: value


def integer(text: str, offset: int = 0) -> Read:
    """Reads 32 bits of an operand; `offset` counts registers or words further."""
    operand = Operand.of(text)
    base = _base_reader(operand, offset, is_float=False)
    if operand.inverted:
        return lambda warp: ~base(warp)
    if operand.negative:
        return lambda warp: np.uint32(0) - base(warp)
    if operand.absolute:
        return lambda warp: np.abs(base(warp).view(np.int32)).view(np.uint32)
    return base


def wide(text: str) -> Read:
    """Reads a pair of registers, or of words, as 64 bits."""
    operand = Operand.of(text)
    low, high = (_base_reader(operand, offset, is_float=False) for offset in (0, 1))

    def read(warp: Any) -> np.ndarray:
        value = low(warp).astype(np.uint64) | high(warp).astype(np.uint64) << np.uint64(32)
        return np.uint64(0) - value if operand.negative else value

    return read


def number(text: str) -> Read:
    """Reads a float32 operand."""
    operand = Operand.of(text)
    base = _base_reader(operand, 0, is_float=True)
    half = {".H0_H0": 0, ".H1_H1": 16}.get(operand.suffix)

    def read(warp: Any) -> np.ndarray:
        bits = base(warp)
        if half is not None:
            value = (bits >> np.uint32(half)).astype(np.uint16).view(np.float16).astype(np.float32)
        else:
            value = bits.view(np.float32)
        value = np.abs(value) if operand.absolute else value
        return -value if operand.negative else value

    return read


def truth(text: str) -> Read:
    """Reads a predicate."""
    row, negated = predicate(text)
    NOTED.reads.add(PREDICATES + row)
    if negated:
        return lambda warp: ~warp.predicates[row]
    return lambda warp: warp.predicates[row]


def address(text: str) -> Read:
    """Reads an address such as desc[UR4][R2.64+0x10], [R4+UR5] or [R4.X4+0x80], as 64 bits."""
    inner = text[text.rindex("[") + 1 : text.rindex("]")]
    terms: list[Read] = []
    fixed = 0
    for sign, term, suffix in _TERM.findall(inner):
        if term.startswith("0x"):
            fixed += -int(term, 16) if sign == "-" else int(term, 16)
            continue
        scale = re.search(r"\.X(\d+)", suffix)
        if ".64" in suffix:
            terms.append(wide(term))
        elif scale:
            terms.append(_scaled(integer(term), int(scale[1])))
        else:
            terms.append(_scaled(integer(term), 1))
    offset = np.array([fixed & 0xFFFFFFFFFFFFFFFF], np.uint64)

    def read(warp: Any) -> np.ndarray:
        total = offset
        for term in terms:
            total = total + term(warp)
        return total

    return read


def _scaled(read: Read, factor: int) -> Read:
    return lambda warp: read(warp).astype(np.uint64) * np.uint64(factor)
