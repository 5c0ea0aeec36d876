"""An estimate of a launch's time on sm_90, from its machine code, its grid and its trips.

`busy` is the time for which the busiest pipe of the busiest multiprocessor is occupied; `alone` is
the time that one warp takes for its instructions, latencies and all, times the rounds of programs
that follow each other. The larger of the two is the estimate, with loads out of the first-level
cache (low) and the second-level one (high). Bank conflicts, memory bandwidth and the tail inside a
kernel are not in it: expect the truth at 1.0 to 1.6 times the estimate, rarely below.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import costs
from .loops import Piece, pieces
from .sass import read, registers

MULTIPROCESSORS, CYCLES_A_US = 132, 1.75e3  # of an H100 or H200
REGISTER_FILE, SHARED, WARPS, PROGRAMS = 65536, 233472, 64, 32  # of a multiprocessor


@dataclass(frozen=True)
class PieceCost:
    """What one piece of a variant costs a warp each time it runs."""

    piece: Piece
    pipes: dict[str, float]
    low: float
    high: float

    @property
    def size(self) -> int:
        return len(self.piece.instructions)


@dataclass(frozen=True)
class Code:
    """A compiled variant as the estimate sees it."""

    pieces: list[PieceCost]
    registers: int
    warps: int
    shared: int
    resident: int  # programs a multiprocessor
    limit: str  # what bounds `resident`

    @property
    def spills(self) -> int:
        """Loads and stores of local memory."""
        bases = (i.base for part in self.pieces for i in part.piece.instructions)
        return sum(base in ("LDL", "STL") for base in bases)


def occupancy(registers: int, warps: int, shared: int) -> tuple[int, str]:
    """Programs that a multiprocessor holds at once, and what limits them."""
    a_warp = -(-registers * 32 // 256) * 256  # registers are handed out in steps of 256
    limits = {
        "registers": REGISTER_FILE // a_warp // warps,
        "shared memory": SHARED // (shared + 1024),
        "warps": WARPS // warps,
        "programs": PROGRAMS,
    }
    limit = min(limits, key=limits.get)
    return max(1, limits[limit]), limit


def load_code(cubin: Path, variant: dict[str, Any]) -> Code:
    """The pieces of a variant's machine code with their costs."""
    (function,) = read(cubin)
    found = []
    for piece in pieces(function):
        repeats = 4 if piece.depth else 2
        low, high = (
            costs.latency(piece.instructions, load, repeats)
            for load in (costs.L1_LATENCY, costs.L2_LATENCY)
        )
        found.append(PieceCost(piece, costs.pipes(piece.instructions), low, high))
    count = registers(cubin)
    resident, limit = occupancy(count, variant["warps"], variant["shared"])
    return Code(found, count, variant["warps"], variant["shared"], resident, limit)


def trips_of(parts: Sequence[PieceCost], loops: Sequence[dict[str, Any]]) -> list[float]:
    """How often every piece runs in a program, from the trips of the source's loops.

    A source loop may be there several times: once for every call of its function, in the order of
    the calls; and each of these unrolled, with its remainder behind it. Pieces that no source loop
    explains count once.
    """
    source: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for loop in loops:
        source[loop["file"], loop["line"]].append(loop)
    machine: dict[tuple[str, int], list[int]] = defaultdict(list)
    for index, part in enumerate(parts):
        if part.piece.depth:
            machine[part.piece.file, part.piece.line].append(index)
    trips = [1.0] * len(parts)
    for place, indices in machine.items():
        calls = source.get(place, [])
        if not calls:
            continue
        if len(indices) % len(calls) or len(calls) == 1 < len(indices) > 4:
            total = sum(loop["mean"] for loop in calls)
            for index in indices:
                trips[index] = total / len(indices)
            continue
        copies = len(indices) // len(calls)
        for number, loop in enumerate(calls):
            group = indices[number * copies : (number + 1) * copies]
            for index, count in zip(group, _split(parts, group, loop["mean"]), strict=True):
                trips[index] = count
    return trips


def _split(parts: Sequence[PieceCost], group: Sequence[int], total: float) -> list[float]:
    """Trips of a loop and its remainder (the shortest): all go to the unrolled one if it can."""
    shortest = min(parts[index].size for index in group)
    factors = [max(1, round(parts[index].size / shortest)) for index in group]
    longest = max(factors)
    if len(group) == 1 or longest == 1:
        return [total / len(group)] * len(group)
    if total < longest:
        return [total if factor == 1 else 0.0 for factor in factors]
    return [total / factor if factor == longest else 0.0 for factor in factors]


@dataclass(frozen=True)
class Estimate:
    """Time of one launch, in microseconds, and where it goes."""

    low: float
    high: float
    bound_by: str  # the busiest pipe, or "latency"
    instructions: float  # a warp
    trips: tuple[float, ...]  # of every piece
    spent: tuple[float, ...]  # cycles that every piece keeps a warp


def estimate(code: Code, programs: int, loops: Sequence[dict[str, Any]]) -> Estimate:
    """Time of `programs` programs that run the loops so often."""
    trips = trips_of(code.pieces, loops)
    weighed = list(zip(trips, code.pieces, strict=True))
    totals = {
        pipe: sum(count * part.pipes[pipe] for count, part in weighed)
        for pipe in code.pieces[0].pipes
    }
    pipe = max(totals, key=totals.get)
    a_multiprocessor = -(-programs // MULTIPROCESSORS)
    rounds = -(-a_multiprocessor // min(code.resident, a_multiprocessor))
    busy = a_multiprocessor * code.warps / 4 * totals[pipe] / CYCLES_A_US
    low = rounds * sum(count * part.low for count, part in weighed) / CYCLES_A_US
    high = rounds * sum(count * part.high for count, part in weighed) / CYCLES_A_US
    spent = tuple(count * part.low for count, part in weighed)
    return Estimate(
        max(busy, low),
        max(busy, high),
        pipe if busy > high else "latency",
        sum(count * part.size for count, part in weighed),
        tuple(trips),
        spent,
    )
