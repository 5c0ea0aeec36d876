"""A warp of a launch, followed instruction by instruction."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..sass import Function
from . import operands
from .arithmetic import INTEGERS, Instruction, Run
from .bits import BITS
from .elf import Layout
from .floats import FLOATS
from .lanes import LANE
from .memory import MEMORY, SHARED_BYTES, Access, Memory
from .needed import Node, superfluous
from .operands import (
    LANES,
    PT,
    RZ,
    UNIFORM,
    UPT,
    URZ,
    Mask,
    predicate,
    register,
    split,
    truth,
)
from .products import PRODUCTS

BUDGET = 800_000  # instructions of a warp
_TARGET = re.compile(r"`\((\S+?)\)")
# Uniform instructions compute like those without the U, on uniform registers.
_UNIFORM = re.compile(
    r"^U(?=(IADD3|MOV|IMAD|LEA|LOP3|SHF|SEL|ISETP|PLOP3|SGXT|PRMT|FLO|POPC|BREV|LDC|VIADD|IABS)\b)"
)


class Unfollowed(Exception):
    """A kernel takes a way that this cannot follow; the message says which."""


@dataclass(frozen=True)
class Launch:
    """What a launch gives its warps: extents (x, y, z) and the bytes of the parameters."""

    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    parameters: bytes


def shared_memory() -> np.ndarray:
    """Of a block, with some room behind it."""
    return np.zeros(SHARED_BYTES + 1024, np.uint8)


class Warp:
    """The state of 32 lanes."""

    def __init__(
        self,
        launch: Launch,
        layout: Layout,
        memory: Memory,
        block: int,
        first: int,
        shared: np.ndarray | None = None,
        is_last: bool = False,
    ) -> None:
        self.registers = np.zeros((UNIFORM + 64, LANES), np.uint32)
        self.predicates = np.zeros((16, LANES), bool)
        self.predicates[[PT, UPT]] = True
        self.memory, self.accesses = memory, dict[int, Access]()
        self.shared = shared_memory() if shared is None else shared
        # Of the last block to arrive: the atomic instructions that have told it so.
        self.arrivals: set[int] | None = set() if is_last else None
        self.local = np.zeros((LANES, 4096), np.uint8)
        bank = bytearray(layout.base + len(launch.parameters) + 16)
        for index, value in enumerate((*launch.block, *launch.grid)):
            bank[4 * index : 4 * index + 4] = value.to_bytes(4, "little")
        bank[layout.base : layout.base + len(launch.parameters)] = launch.parameters
        banks = {0: bytes(bank), **layout.constants}
        self._banks = {
            k: np.frombuffer(v + bytes(-len(v) % 4), np.uint32) for k, v in banks.items()
        }
        x, y, _ = launch.grid
        thread = np.arange(first, first + LANES)
        rows = launch.block[0] * launch.block[1]
        self.special = {
            "SR_TID.X": thread % launch.block[0],
            "SR_TID.Y": thread // launch.block[0] % launch.block[1],
            "SR_TID.Z": thread // rows,
            "SR_CTAID.X": np.array([block % x]),
            "SR_CTAID.Y": np.array([block // x % y]),
            "SR_CTAID.Z": np.array([block // (x * y)]),
            "SR_LANEID": np.arange(LANES),
        }

    def write(self, row: int, value: np.ndarray, mask: Mask) -> None:
        if row in (RZ, URZ):
            return
        if mask is None:
            self.registers[row] = value
        elif row >= UNIFORM:
            self.registers[row] = value[np.argmax(mask)] if len(value) > 1 else value
        else:
            np.copyto(self.registers[row], value, where=mask)

    def decide(self, row: int, value: np.ndarray, mask: Mask) -> None:
        if row in (PT, UPT):
            return
        if mask is None:
            self.predicates[row] = value
        elif row > PT:
            self.predicates[row] = value[np.argmax(mask)] if np.size(value) > 1 else value
        else:
            np.copyto(self.predicates[row], value, where=mask)

    def constants(self, bank: int, places: np.ndarray) -> np.ndarray:
        words = self._banks.get(bank)
        if words is None:
            raise Unfollowed(f"constant bank {bank}")
        places = (places.astype(np.int64) & 0xFFFFFFFF) // 4
        if len(places) > 1 and (places == places[0]).all():
            places = places[:1]
        return np.where(places < len(words), words[np.minimum(places, len(words) - 1)], 0).astype(
            np.uint32
        )

    def shared_read(self, addresses: np.ndarray, size: int) -> np.ndarray:
        start = np.minimum(addresses.astype(np.int64), SHARED_BYTES)
        return self.shared[start[:, None] + np.arange(size)]

    def shared_write(self, addresses: np.ndarray, value: np.ndarray, mask: Mask) -> None:
        start = np.minimum(addresses.astype(np.int64), SHARED_BYTES)
        if mask is not None:
            start, value = start[mask], value[mask]
        self.shared[start[:, None] + np.arange(value.shape[1])] = value


_ALL = INTEGERS | BITS | FLOATS | LANE | PRODUCTS


def decode(name: str, operands: Sequence[str], at: int) -> Run | None:
    """What an instruction does; None: nothing that addresses or branches could depend on."""
    found = Instruction(_UNIFORM.sub("", name), list(operands))
    if found.base in MEMORY:
        return MEMORY[found.base](found, at)
    make = _ALL.get(found.base)
    return make(found) if make else None


class Follower:
    """The code of a kernel, decoded once."""

    def __init__(self, function: Function) -> None:
        self.code = function.instructions
        self.at = {i.address: index for index, i in enumerate(self.code)}
        self.steps: list[tuple[Run | None, tuple[int, bool] | None, str, Any]] = []
        nodes = []
        for index, i in enumerate(self.code):
            uses = operands.noting()
            guard = predicate(i.predicate.lstrip("@")) if i.predicate else None
            if guard:
                truth(i.predicate.lstrip("@"))
            kind, more, run = "", None, None
            if i.base in ("BRA", "CALL", "JMP"):
                kind, more = "branch", self._branch(function, i.name, i.operands)
            elif i.base == "RET":
                kind, more = "return", register(i.operands)
                uses.reads.add(more)
            elif i.base in ("EXIT", "KILL"):
                kind = "exit"
            elif i.base in ("BRX", "JMX"):
                kind = "lost"
            elif i.base == "BAR":
                kind = "barrier"
            else:
                try:
                    run = decode(i.name, split(i.operands), index)
                except (NotImplementedError, ValueError, IndexError, TypeError, StopIteration) as e:
                    raise Unfollowed(f"{i.name} {i.operands}: {e}") from e
            self.steps.append((run, guard, kind, more))
            following = [] if kind in ("exit", "return") and guard is None else [index + 1]
            if kind == "branch" and more[0] is not None:
                always = guard is None and more[1] is None and i.base != "CALL"
                following = [more[0], *([] if always else following)]
            nodes.append(Node(i.base, bool(kind), guard is not None, uses, following))
        returns = [index + 1 for index, i in enumerate(self.code) if i.base == "CALL"]
        for index, (_, _, kind, _) in enumerate(self.steps):
            if kind == "return":
                nodes[index].following.extend(returns)
        dropped, self.needs_shared = superfluous(nodes)
        self.counts_arrivals = any(i.base in ("ATOM", "ATOMG") for i in self.code)
        for index in dropped:
            run, guard, kind, more = self.steps[index]
            self.steps[index] = None, None if not kind else guard, kind, more

    @staticmethod
    def _branch(function: Function, name: str, operands: str) -> tuple[int | None, Any]:
        found = _TARGET.search(operands)
        if ".DIV" in name or found is None:
            return None, None  # taken where lanes have parted that need not
        target = function.labels.get(found[1])
        if target is None:
            raise Unfollowed(f"{name} to {found[1]}")
        texts = [text.strip() for text in operands[: found.start()].split(",")]
        conditions = [truth(text) for text in texts if predicate(text)]
        return target, conditions[0] if conditions else None

    def run(self, warp: Warp) -> list[int]:
        """How often every instruction is executed, by a warp that waits for no other."""
        counts = [0] * len(self.steps)
        for _ in self.advance(warp, counts):
            pass
        return counts

    def run_together(self, together: Sequence[Warp]) -> list[float]:
        """Likewise, the mean of all warps of a block, which go from barrier to barrier."""
        counts = [[0] * len(self.steps) for _ in together]
        going = [self.advance(warp, own) for warp, own in zip(together, counts, strict=True)]
        while going:
            going = [walk for walk in going if next(walk, None) is not None]
        return [sum(column) / len(together) for column in zip(*counts, strict=True)]

    def advance(self, warp: Warp, counts: list[int]) -> Iterator[int]:
        """Executes a warp, counting; stops at every barrier, with its place."""
        everyone = np.ones(LANES, bool)
        waiting: dict[int, np.ndarray] = {}
        group, index = everyone, 0
        spins: dict[int, list[Any]] = {}
        with np.errstate(all="ignore"):
            for _ in range(BUDGET):
                if waiting:
                    first = min(waiting)
                    if first < index:
                        waiting[index] = waiting.get(index, False) | group
                        index, group = first, waiting.pop(first)
                    elif first == index:
                        group = group | waiting.pop(index)
                if index >= len(self.steps):
                    return
                run, guard, kind, more = self.steps[index]
                counts[index] += 1
                mask = group
                if guard is not None:
                    chosen = warp.predicates[guard[0]]
                    mask = group & (~chosen if guard[1] else chosen)
                    if not mask.any():
                        index += 1
                        continue
                if not kind:
                    if run is not None:
                        run(warp, None if mask.all() else mask)
                    index += 1
                    continue
                if kind == "barrier":
                    index += 1
                    yield index
                    continue
                if kind == "lost":
                    raise Unfollowed(f"{self.code[index].name}: a table of jumps")
                target = None
                if kind == "branch":
                    target, condition = more
                    if condition is not None:
                        mask = mask & condition(warp)
                elif kind == "return":
                    target = self.at.get(int(warp.registers[more][np.argmax(mask)]))
                    if target is None:
                        raise Unfollowed("a return to an unknown place")
                stays = group & ~mask
                if kind == "exit" or (target is not None and mask.any()):
                    if target is not None and target <= index and _spins(spins, index, warp):
                        index += 1
                        continue
                    if target is not None:
                        waiting[target] = waiting.get(target, False) | mask
                    if stays.any():
                        index, group = index + 1, stays
                    elif waiting:
                        index = min(waiting)
                        group = waiting.pop(index)
                    else:
                        return
                    continue
                index += 1
        raise Unfollowed(f"more than {BUDGET} instructions")


def _spins(spins: dict[int, list[Any]], index: int, warp: Warp) -> bool:
    """Whether a loop waits for something: its registers are what they were a trip ago."""
    state = spins.setdefault(index, [0, None])
    state[0] += 1
    if state[1] is not None:
        same = np.array_equal(state[1], warp.registers)
        state[1] = None
        return same
    if state[0] >= 16 and state[0] & (state[0] - 1) == 0:
        state[1] = warp.registers.copy()
    return False
