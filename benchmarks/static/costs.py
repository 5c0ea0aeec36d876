"""What instructions cost on a multiprocessor of sm_90: issue slots and pipes, and latency.

The figures are per sub-core (a quarter of a multiprocessor) and warp, in cycles. They describe
throughput as NVIDIA's programming guide tables it, and latencies as microbenchmarks in the
literature have them; neither knows of caches, banks or neighbours.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from .sass import Instruction

FLOAT = ("FFMA", "FADD", "FMUL", "FFMA32I", "FADD32I", "FMUL32I", "HFMA2", "HADD2", "HMUL2")
CONVERSIONS = ("F2F", "F2FP", "F2I", "I2F", "I2FP", "FRND", "I2I")
COMPARISONS = ("FSETP", "FSEL", "FMNMX", "FCHK", "FSET", "ISETP")
CONTROL = ("BRA", "BSSY", "BSYNC", "EXIT", "NOP", "BAR", "CALL", "RET", "WARPSYNC", "DEPBAR")
MEMORY = ("LDG", "LDGSTS", "STG", "LDS", "STS", "LDSM", "STSM", "LDL", "STL")
TENSOR = ("HMMA", "HGMMA", "UTCHMMA")  # of sm_80, sm_90 and sm_100
FREE = (*CONTROL, "MOV", "S2R", "S2UR", "CS2R", "R2UR", "LDC", "ULDC", "LDGDEPBAR", "WARPGROUP")
L1_LATENCY, L2_LATENCY = 40, 270
TURN = 4.0  # cycles that a sub-core waits for a turn of the banks of shared memory

_LATENCY = {
    **dict.fromkeys(("LDC", "ULDC", "S2R", "S2UR"), 30),
    **dict.fromkeys(CONVERSIONS, 18),
    **dict.fromkeys(("BAR", "DEPBAR", "LDGDEPBAR", "LDGSTS", "DADD", "DFMA", "DMUL"), 20),
    **dict.fromkeys(("STG", "STS", "ST"), 12),
    "LDS": 30,
    "LDSM": 30,
    "SHFL": 24,
    "MUFU": 22,
}
_WGMMA = re.compile(r"64x(\d+)x(\d+)")
_MMA = re.compile(r"\.168(16|8|4)\b")
# Multiply-adds of a sub-core's tensor core in a cycle. NVIDIA states 989.4 dense teraflops in half
# precision for the H100 SXM, with 132 multiprocessors at 1.83 GHz: 2 * 2048 operations a cycle on
# each, so 512 multiply-adds on a quarter of one; of TF32 half as many. Only wgmma, whose factors
# come from shared memory, gets there: mma.sync, fed from registers, is measured at 60 to 65 % of
# it on Hopper. So m16n8k16 in half precision, 2048 multiply-adds, takes 6.4 cycles, and so does
# m16n8k8 of TF32, 1024; m16n8k8 in half precision and m16n8k4 of TF32 take 3.2.
HALF_RATE, TF32_RATE = 512, 256
MMA_SHARE = 0.625


def width(instruction: Instruction) -> int:
    """Bits that a thread moves with a load or store."""
    for bits in (128, 64):
        if f".{bits}" in instruction.name:
            return bits
    if re.search(r"\.[US]16|\.16$", instruction.name):
        return 16
    return 8 if re.search(r"\.[US]8", instruction.name) else 32


def is_tensor(instruction: Instruction) -> bool:
    """Whether tensor cores do it."""
    return instruction.base in TENSOR


def tensor_cycles(instruction: Instruction) -> float:
    """Cycles of a sub-core's tensor core; 0 for other instructions."""
    rate = TF32_RATE if "TF32" in instruction.name else HALF_RATE
    if instruction.base == "HGMMA":
        columns, depth = map(int, _WGMMA.search(instruction.name).groups())
        return 64 * columns * depth / 4 / rate
    if instruction.base == "HMMA":
        depth = int(_MMA.search(instruction.name)[1])
        return 16 * 8 * depth / (MMA_SHARE * rate)
    return 0.0


def pipes(instructions: Sequence[Instruction]) -> dict[str, float]:
    """Cycles that every pipe of a sub-core is busy for one warp."""
    counts = Counter(i.base for i in instructions)
    moves = sum(i.base == "IMAD" and _is_move(i.name) for i in instructions)
    integer_products = counts["IMAD"] - moves
    floats = sum(counts[name] for name in FLOAT)
    special = counts["MUFU"]
    wavefronts = sum(
        4 if i.base == "LDSM" else max(1, width(i) / 32) for i in instructions if i.base in MEMORY
    )
    other = len(instructions) - floats - counts["IMAD"] - special
    other -= sum(counts[name] for name in (*MEMORY, *FREE, "SHFL", "HGMMA", "HMMA"))
    other -= sum(n for name, n in counts.items() if name.startswith("U") and name != "ULDC")
    return {
        "issue": float(len(instructions)),
        "fma": float(max(2 * integer_products, counts["IMAD"] + floats)),
        "alu": 2.0 * max(0, other),
        "special": 8.0 * special,
        "memory": TURN * (wavefronts + counts["SHFL"]),
        "tensor": sum(map(tensor_cycles, instructions)),
    }


def _is_move(name: str) -> bool:
    return any(word in name for word in (".MOV", ".SHL", ".IADD"))


def latency_of(instruction: Instruction, load: int) -> int:
    if instruction.base in ("LDG", "LD"):
        return load
    return _LATENCY.get(instruction.base, 14)


def latency(instructions: Sequence[Instruction], load: int, repeats: int) -> float:
    """Cycles a trip that one warp takes alone: stalls and barriers as the compiler set them.

    Args:
        load: latency of a global load.
        repeats: trips to follow; the first is left out, where there are several.
    """
    barriers, now, marks = [0] * 6, 0, []
    for _ in range(repeats):
        for instruction in instructions:
            stall, written, read, waits = instruction.control
            start = max([now, *(barriers[k] for k in range(6) if waits >> k & 1)])
            if written < 6:
                barriers[written] = max(barriers[written], start + latency_of(instruction, load))
            if read < 6:
                barriers[read] = max(barriers[read], start + 12)
            now = start + max(stall, 1) + (24 if instruction.base == "BAR" else 0)
        marks.append(now)
    return (marks[-1] - marks[0]) / (repeats - 1) if repeats > 1 else float(marks[-1])


@dataclass(frozen=True)
class Traffic:
    """Global accesses of some code: the widths of its loads and stores, in bits a thread."""

    loads: dict[int, int]
    stores: dict[int, int]

    @classmethod
    def of(cls, instructions: Sequence[Instruction]) -> Traffic:
        loads = Counter(width(i) for i in instructions if i.base in ("LDG", "LDGSTS"))
        stores = Counter(width(i) for i in instructions if i.base == "STG")
        return cls(dict(loads), dict(stores))
