"""An estimate of a launch's time on sm_90, from its machine code, its grid and its trips.

`busy` is the time for which the busiest pipe of the busiest multiprocessor is occupied, with the
conflicts of shared memory; `alone` is the time that one warp takes for its instructions, latencies
and all, times the rounds of programs that follow each other. The larger of the two is the estimate,
with loads out of the first-level cache (low) and the second-level one (high). What only the last
program to arrive does comes on top, once: all others are done by then. Memory bandwidth,
what scattered accesses cost and the tail inside a kernel are not in it: expect the truth at 1.0 to
1.6 times the estimate, rarely below.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from . import costs
from .loops import Piece, pieces
from .sass import Function

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


def code_of(function: Function, registers: int, warps: int, shared: int) -> Code:
    """The pieces of a function's machine code with their costs."""
    found = []
    for piece in pieces(function):
        repeats = 4 if piece.depth else 2
        low, high = (
            costs.latency(piece.instructions, load, repeats)
            for load in (costs.L1_LATENCY, costs.L2_LATENCY)
        )
        found.append(PieceCost(piece, costs.pipes(piece.instructions), low, high))
    resident, limit = occupancy(registers, warps, shared)
    return Code(found, registers, warps, shared, resident, limit)


@dataclass(frozen=True)
class Estimate:
    """Time of one launch, in microseconds, and where it goes."""

    low: float
    high: float
    bound_by: str  # the busiest pipe, or "latency"
    spent: tuple[float, ...]  # cycles that every piece keeps a warp


def estimate(
    code: Code,
    programs: int,
    trips: Sequence[float],
    conflicts: float = 0.0,
    last: Sequence[float] | None = None,
) -> Estimate:
    """Time of `programs` programs that run every piece so often.

    Args:
        conflicts: turns of shared memory beyond the least, of a warp.
        last: how often the last program to arrive runs every piece, where it does more.
    """
    weighed = list(zip(trips, code.pieces, strict=True))
    totals = {
        pipe: sum(count * part.pipes[pipe] for count, part in weighed)
        for pipe in code.pieces[0].pipes
    }
    totals["memory"] = totals.get("memory", 0.0) + costs.TURN * conflicts
    pipe = max(totals, key=totals.get)
    a_multiprocessor = -(-programs // MULTIPROCESSORS)
    rounds = -(-a_multiprocessor // min(code.resident, a_multiprocessor))
    busy = a_multiprocessor * code.warps / 4 * totals[pipe] / CYCLES_A_US
    low = rounds * sum(count * part.low for count, part in weighed) / CYCLES_A_US
    high = rounds * sum(count * part.high for count, part in weighed) / CYCLES_A_US
    spent = tuple(count * part.low for count, part in weighed)
    more = [max(0.0, b - a) for a, b in zip(trips, last or trips, strict=True)]
    last_low, last_high = _alone(code, more)
    bound_by = pipe if busy > high else "latency"
    return Estimate(max(busy, low) + last_low, max(busy, high) + last_high, bound_by, spent)


def _alone(code: Code, trips: Sequence[float]) -> tuple[float, float]:
    """Time of a single program, low and high, in microseconds."""
    weighed = list(zip(trips, code.pieces, strict=True))
    busy = max(
        code.warps / 4 * sum(count * part.pipes[pipe] for count, part in weighed)
        for pipe in code.pieces[0].pipes
    )
    low, high = (
        sum(count * getattr(part, end) for count, part in weighed) for end in ("low", "high")
    )
    return max(busy, low) / CYCLES_A_US, max(busy, high) / CYCLES_A_US
