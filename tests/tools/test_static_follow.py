"""Following machine code: what warps execute, and how their addresses lie."""

from __future__ import annotations

import struct

import numpy as np
import pytest

pytest.importorskip("triton")

from attnops.benchmarks.static import follow
from attnops.benchmarks.static.follow import warp as warps
from attnops.benchmarks.static.follow.elf import Layout
from attnops.benchmarks.static.follow.memory import Memory, sectors, turns
from attnops.benchmarks.static.follow.operands import LANES
from attnops.benchmarks.static.sass import Function, Instruction

BASE = 0x210
LAYOUT = Layout(BASE, {0: (0, 8), 1: (8, 4)})


def code(*lines: str, **labels: int) -> Function:
    """Instructions of 16 bytes each; a guard may stand first."""
    found = []
    for index, line in enumerate(lines):
        guard = line.split()[0] if line.startswith("@") else ""
        name, _, operands = line.removeprefix(guard).strip().partition(" ")
        found.append(Instruction(16 * index, guard, name, operands, "op/forward.py", index))
    return Function("kernel", found, {f".L_{name}": at for name, at in labels.items()})


def run(function: Function, address: int = 0, number: int = 0, block: int = 0) -> warps.Warp:
    launch = follow.Launch((4, 1, 1), (64, 1, 1), struct.pack("<Qi", address, number))
    warp = warps.Warp(launch, LAYOUT, Memory([]), block, 32)
    warps.Follower(function).run(warp)
    return warp


def results(*lines: str, **values: int) -> list[int]:
    """R0 of lane 5 after every line, with R1, R2, ... and P1 given; an address keeps R0 needed."""
    found = []
    for line in lines:
        moves = [f"MOV R{name[1:]}, {value:#x}" for name, value in values.items()]
        warp = run(code(*moves, line, "STS [R0], RZ", "EXIT"))
        found.append(int(warp.registers[0, 5]))
    return found


def test_integer_arithmetic() -> None:
    big = 0xFFFFFFFE
    lines = ["IADD3 R0, R1, -R2, RZ", "IMAD R0, R1, R2, 0x7", "IMAD.HI.U32 R0, R1, R2, RZ"]
    assert results(*lines, R1=big, R2=5) == [big - 5, (big * 5 + 7) % 2**32, big * 5 >> 32]
    lines = ["LEA R0, R1, R2, 0x2", "LEA.HI R0, R1, R2, RZ, 0x4", "LOP3.LUT R0, R1, R2, RZ, 0x3c"]
    lines[2] += ", !PT"
    assert results(*lines, R1=0x30000001, R2=9) == [0xC000000D, 9 + 3, 0x30000001 ^ 9]
    lines = ["SHF.R.S32.HI R0, RZ, 0x4, R1", "SHF.R.U32.HI R0, RZ, 0x4, R1", "SGXT R0, R1, 0x4"]
    assert results(*lines, R1=0xFFFFFFF8) == [0xFFFFFFFF, 0x0FFFFFFF, 0xFFFFFFF8]
    lines = ["PRMT R0, R1, 0x7632, R2", "VIMNMX R0, R1, R2, PT", "VIMNMX.U32 R0, R1, R2, PT"]
    assert results(*lines, R1=0xFFFF0001, R2=0x22223333) == [0x2222FFFF, 0xFFFF0001, 0x22223333]
    assert results("IABS R0, R1", "POPC R0, R1", "FLO.U32 R0, R1", R1=0xFFFFFFF8) == [8, 29, 31]


def test_sums_and_comparisons_of_64_bits() -> None:
    carry = ["IADD3 R0, P0, R1, R2, RZ", "IADD3.X R0, R3, R4, RZ, P0, !PT"]
    warp = run(
        code(
            "MOV R1, 0xffffffff",
            "MOV R2, 0x2",
            "MOV R3, 0x5",
            "MOV R4, 0x6",
            *carry,
            "STS [R0], RZ",
        )
    )
    assert warp.registers[0, 0] == 12
    compare = ["ISETP.LT.U32.AND P0, PT, R1, R2, PT", "ISETP.LT.AND.EX P0, PT, R3, R4, PT, P0"]
    for low, expected in ((1, 1), (3, 0)):
        lines = [f"MOV R1, {low:#x}", "MOV R2, 0x2", *compare, "SEL R0, 0x1, RZ, P0"]
        assert run(code(*lines, "STS [R0], RZ")).registers[0, 0] == expected


def test_divisions_by_what_is_not_constant() -> None:
    """As the compiler makes them: by a reciprocal in float32, and a step of correction."""
    lines = ["I2F.U32.RP R5, R2", "MUFU.RCP R5, R5", "VIADD R5, R5, 0xffffffe"]
    lines += ["F2I.FTZ.U32.TRUNC.NTZ R5, R5", "IMAD.MOV R6, RZ, RZ, -R5", "IMAD R6, R6, R2, RZ"]
    lines += ["MOV R4, RZ", "IMAD.HI.U32 R5, R5, R6, R4", "IMAD.HI.U32 R0, R5, R1, RZ"]
    lines += [
        "IMAD.MOV R6, RZ, RZ, -R0",
        "IMAD R6, R2, R6, R1",
        "ISETP.GE.U32.AND P0, PT, R6, R2, PT",
    ]
    lines += ["@P0 IADD3 R0, R0, 0x1, RZ", "STS [R0], RZ", "EXIT"]
    for number, divisor in ((1000003, 7), (4095, 4096), (2**31, 3)):
        warp = run(code(f"MOV R1, {number:#x}", f"MOV R2, {divisor:#x}", *lines))
        assert warp.registers[0, 31] == number // divisor


def test_parts_of_constants_and_barriers() -> None:
    lines = ["MOV R1, 0x218", "LDC.U8 R0, c[0x0][R1+0x1]", "STS [R0], RZ", "EXIT"]
    assert run(code(*lines), number=0x11223344).registers[0, 0] == 0x33
    # the other warp writes, behind a barrier, how far this one has to go
    lines = ["S2R R1, SR_TID.X", "SHF.R.U32.HI R2, RZ, 0x5, R1", "ISETP.EQ.AND P0, PT, R2, RZ, PT"]
    lines += ["MOV R3, 0x6", "@!P0 STS [RZ], R3", "BAR.SYNC 0x0", "LDS R4, [RZ]", "MOV R5, RZ"]
    lines += ["IADD3 R5, R5, 0x1, RZ", "ISETP.LT.AND P1, PT, R5, R4, PT", "@P1 BRA `(.L_again)"]
    launch = follow.Launch((1, 1, 1), (64, 1, 1), b"")
    found = follow.follow(code(*lines, "EXIT", again=8), launch, LAYOUT, [])
    assert found.counts[8:11] == [6] * 3


def loop(bound: str) -> Function:
    """for (i = 0; i < bound; ++i) with a load at 16 bytes a lane."""
    return code(
        "S2R R7, SR_TID.X",
        "LDC.64 R2, c[0x0][0x210]",
        bound,
        "MOV R4, RZ",
        "IMAD.WIDE R8, R7, 0x10, R2",
        "LDG.E R5, desc[UR4][R8.64]",
        "IADD3 R4, R4, 0x1, RZ",
        "ISETP.GE.AND P0, PT, R4, R6, PT",
        "@!P0 BRA `(.L_again)",
        "EXIT",
        again=5,
    )


def test_trips_come_from_parameters_and_from_tables() -> None:
    whole = np.zeros(4 * 64 + 32, np.int32)
    table = whole[-whole.ctypes.data % 128 // 4 :][: 4 * 64]  # sectors start where it does
    table[:] = np.arange(3, 3 + 4 * 64)
    ranges = [(table.ctypes.data, table.nbytes)]
    launch = follow.Launch((4, 1, 1), (64, 1, 1), struct.pack("<Qi", table.ctypes.data, 7))
    found = follow.follow(loop("LDC R6, c[0x0][0x218]"), launch, LAYOUT, ranges)
    assert found.counts[5:9] == [7] * 4 and found.outside == 0
    (access,) = found.accesses.values()
    assert access.parts == 4 * access.least  # four of 16 bytes are used
    found = follow.follow(loop("LDG.E R6, desc[UR4][R2.64+0x8]"), launch, LAYOUT, ranges)
    assert found.counts[6:9] == [5] * 3


def test_lanes_part_and_meet() -> None:
    lines = ["S2R R1, SR_LANEID", "ISETP.LT.U32.AND P0, PT, R1, 0x4, PT", "@P0 BRA `(.L_few)"]
    lines += ["MOV R0, 0x1", "BRA `(.L_meet)", "MOV R0, 0x2", "STS [R0], RZ", "EXIT"]
    function = code(*lines, few=5, meet=6)
    warp = run(function)
    assert list(warp.registers[0]) == [2] * 4 + [1] * (LANES - 4)
    again = warps.Warp(follow.Launch((1, 1, 1), (32, 1, 1), b""), LAYOUT, Memory([]), 0, 0)
    assert warps.Follower(function).run(again) == [1] * len(lines)


def test_waiting_for_others_ends() -> None:
    """A loop in which nothing changes is left: it waits for what other blocks do."""
    lines = ["LDG.E R1, desc[UR4][R2.64]", "ISETP.EQ.AND P0, PT, R1, RZ, PT", "@P0 BRA `(.L_top)"]
    run(code(*lines, "EXIT", top=0))


@pytest.mark.parametrize("needs_one", ["", "IADD3 R1, R1, 0x1, RZ"])
def test_one_block_is_followed_as_the_last_to_arrive(needs_one: str) -> None:
    """Its warps learn it from the first one's atomic addition, through shared memory, and once."""
    lines = ["S2R R7, SR_TID.X", "ISETP.EQ.AND P0, PT, R7, RZ, PT", "LDC.64 R2, c[0x0][0x210]"]
    lines += ["MOV R9, RZ", "@P0 ATOMG.E.ADD.STRONG.GPU PT, R1, desc[UR4][R2.64], R6"]
    lines += ["@P0 STS [RZ], R1", "BAR.SYNC 0x0", "LDS R1, [RZ]", needs_one or "NOP"]
    lines += ["ISETP.NE.AND P1, PT, R1, 0xd, PT", "@P1 BRA `(.L_others)"]
    lines += ["IADD3 R8, R8, 0x1, RZ", "BAR.SYNC 0x0", "IADD3 R9, R9, 0x1, RZ"]
    lines += ["ISETP.LT.AND P2, PT, R9, 0x3, PT", "@P2 BRA `(.L_again)", "EXIT"]
    counter = np.zeros(1, np.int32)
    launch = follow.Launch((4, 1, 1), (64, 1, 1), struct.pack("<Qi", counter.ctypes.data, 0))
    ranges = [(counter.ctypes.data, 4)]
    found = follow.follow(code(*lines, again=4, others=12), launch, LAYOUT, ranges)
    assert found.counts[10:13] == [3, 0, 3] and found.last is not None
    assert found.last[10:13] == [3, 1, 3] and counter[0] == 0
    without = follow.follow(loop("LDC R6, c[0x0][0x218]"), launch, LAYOUT, ranges)
    assert without.last is None


def test_what_cannot_be_followed_is_named() -> None:
    with pytest.raises(follow.Unfollowed, match="table of jumps"):
        run(code("BRX R2 -0x10", "EXIT"))


def test_turns_of_banks_and_sectors() -> None:
    lanes = np.arange(LANES)
    assert turns(4 * lanes, 4) == (1, 1)
    assert turns(8 * lanes, 4) == (2, 1)
    assert turns(128 * lanes, 4) == (32, 1)
    assert turns(0 * lanes, 4) == (1, 1)
    assert turns(16 * lanes, 16) == (4, 4)
    assert turns(512 * lanes, 16)[0] == 32
    assert sectors(4 * lanes, 4) == (4, 4)
    assert sectors(64 * lanes, 4) == (32, 4)
    assert sectors(0 * lanes, 4) == (1, 1)
