"""Which instructions addresses and branches depend on: the others need not be done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .memory import GLOBAL, SHARED
from .operands import RZ, URZ, Uses

_LOADS = ("LDS", "LDSM", "ATOMS")  # whose value comes from shared memory


@dataclass(frozen=True)
class Node:
    """An instruction as the search sees it.

    Attributes:
        ends: a branch, or an end: what it reads is needed.
        guarded: it may leave its destinations as they are.
        following: what may come next, by index.
    """

    base: str
    ends: bool
    guarded: bool
    uses: Uses
    following: list[int]


def superfluous(nodes: Sequence[Node]) -> tuple[list[int], bool]:
    """Instructions whose results neither an address nor a branch depends on.

    And whether one of these depends on what lies in shared memory.
    """
    needs_shared = False
    while True:
        live = _live(nodes, needs_shared)
        found = [index for index, node in enumerate(nodes) if not _is_needed(node, live[index + 1])]
        dropped = set(found)
        reads_shared = any(
            node.base in _LOADS and index not in dropped and _wanted(node, live[index + 1])
            for index, node in enumerate(nodes)
        )
        if needs_shared or not reads_shared:
            return found, reads_shared
        needs_shared = True


def _bits(rows: set[int]) -> int:
    total = 0
    for row in rows:
        if row not in (RZ, URZ, None):
            total |= 1 << row
    return total


def _wanted(node: Node, after: int) -> bool:
    return bool(_bits(node.uses.writes) & after)


def _is_needed(node: Node, after: int) -> bool:
    return node.ends or node.base in (*GLOBAL, *SHARED) or _wanted(node, after)


def _live(nodes: Sequence[Node], needs_shared: bool) -> list[int]:
    """What is needed after every instruction (index + 1), as bits of registers and predicates."""
    facts = []
    for node in nodes:
        reads = _bits(node.uses.reads) | (_bits(node.uses.data) if needs_shared else 0)
        facts.append((_bits(node.uses.writes), reads))
    before = [0] * (len(nodes) + 1)
    after = [0] * (len(nodes) + 1)
    before_of: list[list[int]] = [[] for _ in range(len(nodes) + 1)]
    for index, node in enumerate(nodes):
        for following in node.following:
            before_of[following].append(index)
    waiting = list(range(len(nodes)))
    queued = set(waiting)
    while waiting:
        index = waiting.pop()
        queued.discard(index)
        node, (writes, reads) = nodes[index], facts[index]
        out = 0
        for following in node.following:
            out |= before[following]
        after[index + 1] = out
        into = out if node.guarded else out & ~writes
        if _is_needed(node, out):
            into |= reads
        if into != before[index]:
            before[index] = into
            for previous in before_of[index]:
                if previous not in queued:
                    queued.add(previous)
                    waiting.append(previous)
    return after
