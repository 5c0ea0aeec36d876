"""Branches of kernels that only infinities and the like take."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rarely(condition):
    """The condition. The name tells the reader that the branch costs nothing but code."""
    return condition


@triton.jit
def hidden_zero(number):
    """0, as the compiler does not see: grids have one axis.

    Steps with it share nothing with the same steps elsewhere in a program, or with another number,
    and hold no registers between them.
    """
    return number * tl.program_id(1)
