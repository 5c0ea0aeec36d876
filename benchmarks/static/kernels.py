"""One launch of a compiled kernel: the columns that its code, its grid and its trips give."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .costs import Traffic, is_tensor
from .estimate import Code, code_of, estimate
from .follow import SAMPLES, Followed, Launch, Unfollowed, follow
from .follow.elf import Layout, layouts
from .sass import Function, read, resources

MODELLED = 90  # the architecture that `costs` and `estimate` describe
INNER = 10.0  # trips of a loop that is not followed, for what is hot


@dataclass(frozen=True)
class Kernel:
    """A kernel of a cubin."""

    function: Function
    layout: Layout
    registers: int
    shared: int  # static, bytes

    @classmethod
    def all_of(cls, cubin: Path) -> dict[str, Kernel]:
        found, parameters = resources(cubin), layouts(cubin)
        return {
            function.name: cls(function, parameters[function.name], *found[function.name])
            for function in read(cubin)
            if function.name in found
        }

    @cached_property
    def _pieces(self) -> dict[tuple[int, int], Code]:
        return {}

    def code(self, warps: int, shared: int) -> Code:
        key = warps, shared
        if key not in self._pieces:
            self._pieces[key] = code_of(self.function, self.registers, warps, shared)
        return self._pieces[key]


def _ratio(followed: Followed, is_shared: bool) -> float:
    """How often more sectors or turns than needed, over all accesses of a kind."""
    parts = least = 0.0
    for index, access in followed.accesses.items():
        if access.is_shared == is_shared:
            runs = followed.counts[index] / access.executions
            parts += runs * access.parts
            least += runs * access.least
    return round(parts / least, 2) if least else 1.0


def _turns(followed: Followed) -> float:
    """Turns of shared memory that a warp waits for because of conflicts."""
    return sum(
        followed.counts[index] / access.executions * (access.parts - access.least)
        for index, access in followed.accesses.items()
        if access.is_shared
    )


def _trips(function: Function, code: Code, counts: Sequence[float]) -> list[float]:
    """How often every piece runs, by the executions of its instructions."""
    at = {id(i): count for i, count in zip(function.instructions, counts, strict=True)}
    return [
        sum(at[id(i)] for i in part.piece.instructions) / max(1, part.size) for part in code.pieces
    ]


def _hot(code: Code, trips: Sequence[float], spent: Sequence[float]) -> dict[str, Any]:
    """What the hottest piece of code does, of those that do it at all: loads, stores, products.

    Loads and stores by their width in bits; of all bytes that a thread loads, and stores, the share
    in accesses of 128 bits; and instructions of tensor cores.
    """
    instructions = [part.piece.instructions for part in code.pieces]
    hottest_first = sorted(range(len(spent)), key=lambda i: -spent[i])
    tensor = [sum(map(is_tensor, part)) for part in instructions]
    row: dict[str, Any] = {
        "tensor_instructions": next((tensor[i] for i in hottest_first if tensor[i]), 0)
    }
    for name in ("loads", "stores"):
        widths = [getattr(Traffic.of(part), name) for part in instructions]
        shown = next((widths[i] for i in hottest_first if widths[i]), {})
        row[name] = {str(bits): count for bits, count in shown.items()}
        total = wide = 0.0
        for count, found in zip(trips, widths, strict=True):
            total += count * sum(bits * n for bits, n in found.items())
            wide += count * 128 * found.get(128, 0)
        row[f"wide_{name}"] = round(wide / total, 3) if total else 1.0
    return row


def columns(
    kernel: Kernel,
    name: str,
    launch: Launch,
    shared: int,
    ranges: Iterable[tuple[int, int]],
    arch: int = MODELLED,
    samples: int = SAMPLES,
) -> dict[str, Any]:
    """What one launch says; what follows from a model, for sm_90 alone.

    Args:
        shared: all of a block's shared memory, bytes.
        ranges: address and bytes of memory that the launch may read.
        samples: blocks to follow.
    """
    programs = launch.grid[0] * launch.grid[1] * launch.grid[2]
    threads = launch.block[0] * launch.block[1] * launch.block[2]
    code = kernel.code(-(-threads // 32), shared)
    row = {
        "kernel": name,
        "programs": programs,
        "threads": threads,
        "registers": code.registers,
        "shared": shared,
        "spills": code.spills,
    }
    if arch != MODELLED:
        trips = [INNER**part.piece.depth for part in code.pieces]
        spent = [count * part.size for count, part in zip(trips, code.pieces, strict=True)]
        return row | _hot(code, trips, spent)
    row |= {"resident": code.resident, "limit": code.limit}
    try:
        followed = follow(kernel.function, launch, kernel.layout, ranges, samples)
    except Unfollowed as error:
        return row | {"why": str(error)}
    trips = _trips(kernel.function, code, followed.counts)
    last = followed.last and _trips(kernel.function, code, followed.last)
    found = estimate(code, programs, trips, _turns(followed), last)
    hottest = max(range(len(trips)), key=lambda i: found.spent[i])
    piece = code.pieces[hottest].piece
    return row | {
        "low_us": round(found.low, 2),
        "high_us": round(found.high, 2),
        "bound_by": found.bound_by,
        "warp_instructions": round(sum(followed.counts)),
        "hottest": f"{piece.file}:{piece.line}" if piece.line else "outside loops",
        "hottest_instructions": len(piece.instructions),
        "hottest_trips": round(trips[hottest], 1),
        "sectors": _ratio(followed, is_shared=False),
        "conflicts": _ratio(followed, is_shared=True),
        **_hot(code, trips, found.spent),
    }
