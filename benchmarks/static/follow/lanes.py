"""Machine instructions that know their lane: special registers, shuffles, votes, reductions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import operands
from .arithmetic import Instruction, Run, setter
from .operands import (
    LANES,
    Mask,
    constant_reader,
    integer,
    predicate,
    register,
    truth,
    writes_predicate,
)


def _special_register(i: Instruction) -> Run:
    put, name = setter(i.operands[0]), i.operands[1]
    zero = np.zeros(1, np.uint32)
    if i.base == "CS2R" and not i.has("32"):
        put_high = setter(i.operands[0], 1)

        def both(warp: Any, mask: Mask) -> None:
            put(warp, zero, mask)
            put_high(warp, zero, mask)

        return both
    return lambda warp, mask: put(warp, warp.special.get(name, zero).astype(np.uint32), mask)


def _load_constant(i: Instruction) -> Run:
    count = 2 if i.has("64") else 4 if i.has("128") else 1
    puts = [setter(i.operands[0], k) for k in range(count)]
    bits = next((int(word[1:]) for word in i.words if word in ("U16", "U8")), 0)
    if i.has("S16") or i.has("S8"):
        raise NotImplementedError("signed parts of constants")
    reads = [constant_reader(i.operands[1], 4 * k, bits) for k in range(count)]

    def run(warp: Any, mask: Mask) -> None:
        for put, value in zip(puts, [read(warp) for read in reads], strict=True):
            put(warp, value, mask)

    return run


def _shuffle(i: Instruction) -> Run:
    """SHFL: within segments of a warp."""
    put, read, by, clamp = setter(i.operands[1]), *map(integer, i.operands[2:5])
    row, lanes = writes_predicate(predicate(i.operands[0])[0]), np.arange(LANES)

    def run(warp: Any, mask: Mask) -> None:
        value = np.broadcast_to(read(warp), (LANES,))
        offset = np.broadcast_to(by(warp), (LANES,)).astype(np.int64)
        limit = np.broadcast_to(clamp(warp), (LANES,)).astype(np.int64)
        segment = limit >> 8 & 31
        least, most = lanes & segment, lanes & segment | limit & 31 & ~segment
        if i.has("UP"):
            source, good = lanes - offset, lanes - offset >= most
        elif i.has("DOWN"):
            source, good = lanes + offset, lanes + offset <= most
        elif i.has("BFLY"):
            source, good = lanes ^ offset, (lanes ^ offset) <= most
        else:
            source = least | offset & 31 & ~segment
            good = source <= most
        put(warp, value[np.where(good, source, lanes) & 31], mask)
        warp.decide(row, good, mask)

    return run


def _vote(i: Instruction) -> Run:
    """VOTE: a predicate of all lanes, and their ballot."""
    source = truth(i.operands[-1])
    everyone = i.has("ALL")
    for text in i.operands[:-1]:
        decided = predicate(text)
        operands.NOTED.writes.add(operands.PREDICATES + decided[0] if decided else register(text))

    def run(warp: Any, mask: Mask) -> None:
        lanes = source(warp) if mask is None else source(warp) & mask
        asked = np.ones(LANES, bool) if mask is None else mask
        found = (source(warp) | ~asked).all() if everyone else lanes.any()
        for text in i.operands[:-1]:
            if decided := predicate(text):
                warp.decide(decided[0], np.array([found]), mask)
            else:
                ballot = np.packbits(lanes[::-1]).view(">u4").astype(np.uint32)
                warp.write(register(text), ballot, mask)

    return run


def _reduce(i: Instruction) -> Run:
    """REDUX: over the lanes, into a uniform register."""
    put, read = setter(i.operands[0]), integer(i.operands[1])
    words = {"SUM": np.sum, "MIN": np.min, "MAX": np.max}
    function = next((words[word] for word in i.words if word in words), np.bitwise_or.reduce)

    def run(warp: Any, mask: Mask) -> None:
        value = np.broadcast_to(read(warp), (LANES,))
        chosen = value if mask is None else value[mask]
        if i.has("S32"):
            chosen = chosen.view(np.int32)
        total = int(function(chosen)) & 0xFFFFFFFF
        put(warp, np.array([total], np.uint32), mask)

    return run


def _predicates_to_register(i: Instruction) -> Run:
    put, bits = setter(i.operands[0]), int(i.operands[-1], 16)
    read = integer(i.operands[2])
    operands.NOTED.reads.update(operands.PREDICATES + row for row in range(7))

    def run(warp: Any, mask: Mask) -> None:
        total = np.broadcast_to(read(warp) & np.uint32(~bits & 0xFFFFFFFF), (LANES,)).copy()
        for row in range(7):
            if bits >> row & 1:
                total |= warp.predicates[row].astype(np.uint32) << np.uint32(row)
        put(warp, total, mask)

    return run


def _register_to_predicates(i: Instruction) -> Run:
    read, bits = integer(i.operands[1]), int(i.operands[-1], 16)
    shift = {".B1": 8, ".B2": 16, ".B3": 24}.get(i.operands[1][-3:], 0)
    for row in range(7):
        if bits >> row & 1:
            writes_predicate(row)

    def run(warp: Any, mask: Mask) -> None:
        value = read(warp) >> np.uint32(shift)
        for row in range(7):
            if bits >> row & 1:
                warp.decide(row, (value >> np.uint32(row) & np.uint32(1)) > 0, mask)

    return run


def _always(i: Instruction) -> Run | None:
    """SYNCS: whoever waits for a barrier in shared memory finds it done."""
    rows = [found[0] for text in i.operands if (found := predicate(text)) and not found[1]]
    if rows:
        writes_predicate(rows[0])
    done = np.ones(1, bool)

    def run(warp: Any, mask: Mask) -> None:
        for row in rows[:1]:
            warp.decide(row, done, mask)

    return run


LANE: dict[str, Callable[[Instruction], Run | None]] = {
    **dict.fromkeys(("S2R", "S2UR", "CS2R"), _special_register),
    "LDC": _load_constant,
    "SHFL": _shuffle,
    "VOTE": _vote,
    "VOTEU": _vote,
    "REDUX": _reduce,
    "P2R": _predicates_to_register,
    "R2P": _register_to_predicates,
    "SYNCS": _always,
}
