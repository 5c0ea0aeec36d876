"""Natural loops of machine code, and the source loops that they come from."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

from .sass import Function, Instruction

_TARGET = re.compile(r"`\((\.L_\S+?)\)")
_CONDITION = re.compile(r"^!?U?P\d")
_ENDS = ("EXIT", "RET", "BRX", "JMP", "CALL", "KILL")


@dataclass(frozen=True)
class Piece:
    """Instructions that run equally often: of one loop without its inner ones, or of none.

    `line` is where the source loop's `for` stands, 0 for the code around the loops; `depth` is 0
    there too.
    """

    instructions: tuple[Instruction, ...]
    file: str = ""
    line: int = 0
    depth: int = 0


class _Graph:
    """Basic blocks by the index of their first instruction, and their successors."""

    def __init__(self, function: Function) -> None:
        self.code = function.instructions
        self.targets: dict[int, int] = {}
        leaders = {0, *function.labels.values()}
        for index, instruction in enumerate(self.code):
            if instruction.base == "BRA":
                found = _TARGET.search(instruction.operands)
                if found and found[1] in function.labels:
                    self.targets[index] = function.labels[found[1]]
                    leaders.add(function.labels[found[1]])
                leaders.add(index + 1)
            elif instruction.base in _ENDS:
                leaders.add(index + 1)
        starts = sorted(index for index in leaders if index < len(self.code))
        self.ends = dict(zip(starts, [*starts[1:], len(self.code)], strict=True))
        self.successors = {start: self._successors(start) for start in starts}

    def last(self, start: int) -> Instruction:
        return self.code[self.ends[start] - 1]

    def _successors(self, start: int) -> list[int]:
        end = self.ends[start]
        last, following = self.code[end - 1], [end] if end < len(self.code) else []
        if last.base == "BRA" and end - 1 in self.targets:
            conditional = last.predicate or _CONDITION.match(last.operands.strip())
            return [self.targets[end - 1], *(following if conditional else [])]
        if last.base in ("EXIT", "RET", "KILL") and not last.predicate:
            return []
        return following


def _reverse_postorder(graph: _Graph) -> list[int]:
    order, seen = [], {0}
    stack = [(0, iter(graph.successors[0]))]
    while stack:
        block, following = stack[-1]
        for successor in following:
            if successor not in seen:
                seen.add(successor)
                stack.append((successor, iter(graph.successors[successor])))
                break
        else:
            order.append(block)
            stack.pop()
    return order[::-1]


def _dominators(graph: _Graph, order: list[int], before: dict[int, list[int]]) -> dict[int, int]:
    """Immediate dominators, by the iteration of Cooper, Harvey and Kennedy."""
    rank = {block: index for index, block in enumerate(order)}
    dominator = {0: 0}

    def meet(a: int, b: int) -> int:
        while a != b:
            while rank[a] > rank[b]:
                a = dominator[a]
            while rank[b] > rank[a]:
                b = dominator[b]
        return a

    changed = True
    while changed:
        changed = False
        for block in order[1:]:
            known = [p for p in before[block] if p in dominator]
            found = known[0]
            for other in known[1:]:
                found = meet(found, other)
            if dominator.get(block) != found:
                dominator[block], changed = found, True
    return dominator


def pieces(function: Function) -> list[Piece]:
    """The code around all loops first, then every natural loop in the order of its address."""
    graph = _Graph(function)
    order = _reverse_postorder(graph)
    before: dict[int, list[int]] = defaultdict(list)
    for block in order:
        for successor in graph.successors[block]:
            before[successor].append(block)
    dominator = _dominators(graph, order, before)

    def dominates(a: int, b: int) -> bool:
        while b not in (a, 0):
            b = dominator[b]
        return a == b

    bodies: dict[int, set[int]] = {}
    back: dict[int, Instruction] = {}
    for block in order:
        for head in graph.successors[block]:
            if not dominates(head, block):
                continue
            back[head] = graph.last(block)
            body, waiting = bodies.setdefault(head, {head}), [block]
            while waiting:
                member = waiting.pop()
                if member not in body:
                    body.add(member)
                    waiting += before[member]
    found = []
    for head, body in sorted(bodies.items()):
        own = body - set().union(*(b for h, b in bodies.items() if h != head and b < body))
        depth = sum(head in other for other in bodies.values())
        branch = back[head]
        found.append(Piece(_of(graph, own), branch.file, branch.line, depth))
    around = set(order) - set().union(*bodies.values()) if bodies else set(order)
    return [Piece(_of(graph, around)), *found]


def _of(graph: _Graph, blocks: set[int]) -> tuple[Instruction, ...]:
    return tuple(i for start in sorted(blocks) for i in graph.code[start : graph.ends[start]])
