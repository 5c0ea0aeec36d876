"""Loads and stores: host memory in place of the device's, and how lanes' addresses lie.

A load of global memory reads what is there, if the address is in memory that the launch was given;
stores to global memory are noted but not done. Shared memory is one warp's own.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import operands
from .arithmetic import Instruction, Run, setter
from .arrivals import EVERYONE
from .operands import LANES, RZ, Mask, address, register, truth

SECTOR, BANKS, WORD = 32, 32, 4
SHARED_BYTES = 232448
NOTED = 64  # executions of an instruction of which addresses are looked at

GLOBAL = ("LDG", "LD", "STG", "ST", "LDGSTS", "ATOM", "ATOMG", "RED")
SHARED = ("LDS", "STS", "LDSM", "STSM", "ATOMS")


@dataclass
class Access:
    """What the warp-wide executions of one instruction did together.

    Attributes:
        executions: that were looked at.
        parts: 32-byte sectors of global memory that they touched, or turns that the banks of shared
            memory needed.
        least: how many it would be with neighbouring lanes side by side.
    """

    is_shared: bool
    executions: int = 0
    parts: int = 0
    least: int = 0


class Memory:
    """Ranges of host memory that a launch may read."""

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        found = sorted({(start, size) for start, size in ranges if size})
        self.starts = np.array([start for start, _ in found], np.uint64)
        self.ends = np.array([start + size for start, size in found], np.uint64)
        self.views = [
            np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(start))
            for start, size in found
        ]
        self.outside = self.inside = 0

    def read(self, addresses: np.ndarray, size: int, mask: Mask) -> np.ndarray:
        """Bytes [lanes, size]; zeros where an address is in no range, or the lane is masked."""
        out = np.zeros((len(addresses), size), np.uint8)
        if not self.views:
            return out
        where = np.searchsorted(self.starts, addresses, "right") - 1
        good = (where >= 0) & (addresses + np.uint64(size) <= self.ends[where])
        asked = LANES if mask is None else int(mask.sum())
        good = good if mask is None else good & mask
        self.inside += int(good.sum())
        self.outside += asked - int(good.sum())
        for index in np.unique(where[good]):
            lanes = good & (where == index)
            offsets = (addresses[lanes] - self.starts[index]).astype(np.int64)
            out[lanes] = self.views[index][offsets[:, None] + np.arange(size)]
        return out


def turns(addresses: np.ndarray, size: int) -> tuple[int, int]:
    """Turns of the banks for the lanes' words, and the least that their bytes need.

    Lanes go together as many as fit 128 bytes: 8 of 16 bytes each, 16 of 8, else all.
    """
    together = max(1, min(LANES, BANKS * WORD // size))
    total = least = 0
    for start in range(0, len(addresses), together):
        part = addresses[start : start + together]
        words = np.unique((part[:, None] + np.arange(0, size, WORD)).ravel() // WORD)
        total += int(np.bincount(words % BANKS).max())
        least += -(-len(words) // BANKS)
    return total, least


def sectors(addresses: np.ndarray, size: int) -> tuple[int, int]:
    """Sectors that the lanes' bytes lie in, and the least that so many bytes need."""
    first, last = addresses // SECTOR, (addresses + size - 1) // SECTOR
    used = np.unique(np.concatenate([first, last]))
    bytes_used = len(np.unique(addresses)) * size
    return len(used), -(-bytes_used // SECTOR)


def _size(i: Instruction) -> int:
    """Bytes of a lane."""
    for bits in ("128", "64", "U16", "S16", "16", "U8", "S8"):
        if i.has(bits):
            return int(re.sub(r"\D", "", bits)) // 8
    return WORD


def _place(i: Instruction) -> int:
    """Which operand is the address."""
    return next(
        index for index, text in enumerate(i.operands) if "[" in text and not text.startswith("c[")
    )


def _noted(i: Instruction, at: int) -> Any:
    """A function that notes the addresses of an execution."""
    is_shared = i.base in SHARED
    size, key = _size(i), at
    matrices = int(i.words[-1]) if i.base in ("LDSM", "STSM") and i.words[-1].isdigit() else 1

    def note(warp: Any, addresses: np.ndarray, mask: Mask) -> None:
        access = warp.accesses.setdefault(key, Access(is_shared))
        if access.executions >= NOTED:
            return
        chosen = (addresses if mask is None else addresses[mask]).astype(np.int64)
        if i.base in ("LDSM", "STSM"):  # the rows' addresses, of 8 lanes a matrix
            parts, least = turns(chosen[: 8 * matrices], 16)
        else:
            parts, least = (turns if is_shared else sectors)(chosen, size)
        access.executions += 1
        access.parts += parts
        access.least += least

    return note


def _full(value: np.ndarray) -> np.ndarray:
    return np.broadcast_to(value, (LANES,)) if len(value) == 1 else value


def _load(i: Instruction, at: int) -> Run:
    """LDG, LDS."""
    size, place, note = _size(i), _place(i), _noted(i, at)
    read, row = address(i.operands[place]), register(i.operands[place - 1])
    puts = [setter(i.operands[place - 1], k) for k in range(max(1, size // WORD))]
    is_shared = i.base in SHARED
    signed = i.has("S16") or i.has("S8")

    def run(warp: Any, mask: Mask) -> None:
        addresses = _full(read(warp))
        if is_shared:
            addresses = addresses & np.uint64(0xFFFFFFFF)
        if row == RZ:
            return
        note(warp, addresses, mask)
        found = (
            warp.shared_read(addresses, size)
            if is_shared
            else warp.memory.read(addresses, size, mask)
        )
        if size >= WORD:
            words = found.view(np.uint32)
            for k, put in enumerate(puts):
                put(warp, np.ascontiguousarray(words[:, k]), mask)
            return
        value = found.view(f"{'i' if signed else 'u'}{size}")[:, 0].astype(np.int64)
        puts[0](warp, (value & 0xFFFFFFFF).astype(np.uint32), mask)

    return run


def _store(i: Instruction, at: int) -> Run:
    """STG, STS, RED: shared memory is written, global memory is not."""
    size, place, note = _size(i), _place(i), _noted(i, at)
    read, row = address(i.operands[place]), register(i.operands[place + 1])
    is_shared = i.base == "STS"
    rows = [row if row in (None, RZ) else row + k for k in range(max(1, size // WORD))]
    if is_shared and row is not None:
        operands.NOTED.data.update(rows)

    def run(warp: Any, mask: Mask) -> None:
        addresses = _full(read(warp))
        if i.base in SHARED:
            addresses = addresses & np.uint64(0xFFFFFFFF)
        note(warp, addresses, mask)
        if is_shared and row is not None:
            words = np.ascontiguousarray(np.stack([warp.registers[r] for r in rows], 1))
            warp.shared_write(addresses, words.view(np.uint8)[:, :size], mask)

    return run


def _copy(i: Instruction, at: int) -> Run:
    """LDGSTS: from global to shared memory."""
    size, note = _size(i), _noted(i, at)
    to, source = address(i.operands[0]), address(i.operands[1])
    condition = truth(i.operands[2]) if len(i.operands) > 2 else None

    def run(warp: Any, mask: Mask) -> None:
        if condition is not None:
            mask = condition(warp) if mask is None else mask & condition(warp)
            if not mask.any():
                return
        addresses = _full(source(warp))
        note(warp, addresses, mask)
        found = warp.memory.read(addresses, size, mask)
        warp.shared_write(_full(to(warp)) & np.uint64(0xFFFFFFFF), found, mask)

    return run


def _matrices(i: Instruction, at: int) -> Run:
    """LDSM and STSM: whose data only products use."""
    place, note = _place(i), _noted(i, at)
    read = address(i.operands[place])

    def run(warp: Any, mask: Mask) -> None:
        note(warp, _full(read(warp)) & np.uint64(0xFFFFFFFF), mask)

    return run


def _exchange(i: Instruction, at: int) -> Run:
    """ATOM, ATOMG, ATOMS: what was there is read, nothing is written.

    The last block to arrive is told so in its place, once.
    """
    while "[" not in i.operands[1] and len(i.operands) > 2:
        del i.operands[0]  # a predicate
    read, put = _load(i, at), setter(i.operands[0])
    if i.base in SHARED or _size(i) != WORD:
        return read

    def run(warp: Any, mask: Mask) -> None:
        read(warp, mask)
        if warp.arrivals is not None and at not in warp.arrivals:
            warp.arrivals.add(at)
            put(warp, np.full(LANES, EVERYONE, np.uint32), mask)

    return run


MEMORY = {
    **dict.fromkeys(("LDG", "LD", "LDS"), _load),
    **dict.fromkeys(("STG", "ST", "STS", "RED"), _store),
    **dict.fromkeys(("ATOM", "ATOMG", "ATOMS"), _exchange),
    **dict.fromkeys(("LDSM", "STSM"), _matrices),
    "LDGSTS": _copy,
}
