"""Following the machine code of a launch: what its warps execute, and which addresses they use.

The integer and float32 arithmetic that addresses and branches depend on is done as the device does
it, on the launch's own parameters and on what lies in its memory; products of tensor cores are
zero, and packed half precision, on which only data depends, is left out. So loops run as often as
they would, tables that a kernel reads included, with no model of how the source was compiled.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ..sass import Function
from .elf import Layout
from .memory import Access, Memory
from .warp import Follower, Launch, Unfollowed, Warp, shared_memory

__all__ = ["Access", "Followed", "Launch", "Unfollowed", "follow", "parameters_of"]

SAMPLES = 4  # blocks of a launch, evenly spread; of each another warp
TOGETHER = 2  # blocks of which all warps are followed


@dataclass
class Followed:
    """Means over the warps that were followed.

    Attributes:
        counts: executions of every instruction, in the order of the code.
        accesses: by the index of the instruction.
        outside: share of the loads from global memory that read none of the launch's memory.
        last: executions by the block that arrives last (arrivals.py), None: no code asks for it.
    """

    counts: list[float]
    accesses: dict[int, Access] = field(default_factory=dict)
    outside: float = 0.0
    last: list[float] | None = None


def follow(
    function: Function,
    launch: Launch,
    layout: Layout,
    ranges: Iterable[tuple[int, int]],
    samples: int = SAMPLES,
) -> Followed:
    """Some warps of a launch.

    Args:
        ranges: address and bytes of memory that the launch may read.
        samples: blocks to follow.

    Raises:
        Unfollowed: the code goes where this cannot.
    """
    follower, memory = Follower(function), Memory(ranges)
    blocks = launch.grid[0] * launch.grid[1] * launch.grid[2]
    warps = max(1, launch.block[0] * launch.block[1] * launch.block[2] // 32)
    # Where a branch or an address depends on shared memory, all warps of a block go together.
    samples = min(samples, TOGETHER) if follower.needs_shared else samples
    chosen = sorted({blocks * (2 * k + 1) // (2 * samples) for k in range(samples)})
    total = [0.0] * len(function.instructions)
    found = Followed([])
    for number, block in enumerate(chosen):
        if follower.needs_shared:
            together = _warps_of(block, warps, launch, layout, memory)
            counts = follower.run_together(together)
        else:
            first = 32 * (number * max(1, warps // SAMPLES) % warps)
            together = [Warp(launch, layout, memory, block, first)]
            counts = follower.run(together[0])
        total = [a + b for a, b in zip(total, counts, strict=True)]
        for warp in together:
            _add(found.accesses, warp.accesses)
    found.counts = [count / len(chosen) for count in total]
    if follower.counts_arrivals:
        together = _warps_of(chosen[0], warps, launch, layout, memory, is_last=True)
        found.last = follower.run_together(together)
    found.outside = memory.outside / max(1, memory.outside + memory.inside)
    return found


def _warps_of(
    block: int, warps: int, launch: Launch, layout: Layout, memory: Memory, is_last: bool = False
) -> list[Warp]:
    """All warps of a block, with their shared memory."""
    shared = shared_memory()
    return [Warp(launch, layout, memory, block, 32 * k, shared, is_last) for k in range(warps)]


def _add(total: dict[int, Access], more: dict[int, Access]) -> None:
    for index, access in more.items():
        into = total.setdefault(index, Access(access.is_shared))
        into.executions += access.executions
        into.parts += access.parts
        into.least += access.least


def parameters_of(layout: Layout, values: Sequence[bytes]) -> bytes:
    """The parameters as they lie in the constant bank, from the bytes of each."""
    end = max((offset + size for offset, size in layout.parameters.values()), default=0)
    bank = bytearray(end)
    for ordinal, value in enumerate(values):
        offset, size = layout.parameters[ordinal]
        bank[offset : offset + size] = value[:size].ljust(size, b"\0")
    return bytes(bank)
