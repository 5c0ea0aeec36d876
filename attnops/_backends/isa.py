"""ATTNOPS_ISA: the instruction set that the C++ kernels for the CPU are to keep to."""

from __future__ import annotations

import os
import warnings

from .library import build_info

NAMES = ("baseline", "avx2", "avx512")  # oldest first, as csrc/cpu/isa.h has them


def settle_instruction_set() -> None:
    """Have the library choose its instruction set now, and warn of a choice it could not obey.

    ATTNOPS_ISA only lowers what the processor has, and avx512 leaves AMX out; the library reads it
    once.
    """
    running = build_info("cpu")["isa"]
    wanted = os.environ.get("ATTNOPS_ISA", "")
    if wanted.lower() in ("", running):
        return
    if wanted.lower() in NAMES:
        reason = f"this processor or build has no {wanted.lower()}"
    else:
        reason = f"expected {', '.join(NAMES[:-1])} or {NAMES[-1]}"
    warnings.warn(
        f"ATTNOPS_ISA={wanted!r} is not obeyed: {reason}; the CPU kernels run {running}",
        RuntimeWarning,
        stacklevel=2,
    )
