"""Matrix products of float32 on tensor cores with the error of float32: three of TF32 each."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def split_tf32(x, FINITE: tl.constexpr = False):
    """float32 x as high + low, high a TF32 number (10 bits of mantissa): low is what rounding left.

    Tensor cores read 10 bits of low, too: 2^-22 of x is lost. Infinite and NaN x: high is x, unless
    x is said to be FINITE, which saves looking.
    """
    bits = x.to(tl.int32, bitcast=True)
    rounded = ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    high = rounded if FINITE else tl.where(x - x == 0.0, rounded, x)
    return high, x - high


@triton.jit
def dot_split(a_high, a_low, b_high, b_low):
    """(a_high + a_low) (b_high + b_low) without the product of the lows, 2^-22 of the whole."""
    small = tl.dot(a_low, b_high, input_precision="tf32")
    small = tl.dot(a_high, b_low, small, input_precision="tf32")
    # An infinite factor makes NaN of the parts that it was split into; the last product has it.
    small = tl.where(small - small == 0.0, small, 0.0)
    return tl.dot(a_high, b_high, small, input_precision="tf32")


@triton.jit
def before_factors(x):
    """The columns 8i + 4k + j of x [rows, columns] as 8i + 2j + k: what as_factors undoes."""
    rows: tl.constexpr = x.shape[0]
    columns: tl.constexpr = x.shape[1]
    pairs = tl.permute(tl.reshape(x, [rows, columns // 8, 2, 4]), (0, 1, 3, 2))
    return tl.reshape(pairs, [rows, columns])


@triton.jit
def as_factors(x):
    """The columns 8i + 2j + k of x [rows, columns] as 8i + 4k + j.

    A thread that has two neighbours of a TF32 product, as tensor cores leave it, then has what it
    contributes to the next product when that is the left factor: nothing is exchanged.
    """
    rows: tl.constexpr = x.shape[0]
    columns: tl.constexpr = x.shape[1]
    pairs = tl.permute(tl.reshape(x, [rows, columns // 8, 4, 2]), (0, 1, 3, 2))
    return tl.reshape(pairs, [rows, columns])


@triton.jit
def as_product(x):
    """x, in the registers in which tensor cores leave a product.

    The compiler decides by the operations around where an intermediate lives; that of a product is
    fixed. So that of nothing is added, in one instruction: without it, both parts of x would go
    through shared memory.
    """
    nothing = tl.zeros([x.shape[0], 16], dtype=tl.float32)
    return tl.dot(nothing, tl.zeros([16, x.shape[1]], dtype=tl.float32), x, input_precision="tf32")


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a b, float32 factors in the given precision."""
    if PRECISION == "tf32x3":
        a_high, a_low = split_tf32(a)
        b_high, b_low = split_tf32(b)
        # Tensor cores cut sums off: added here, where they are rounded to nearest.
        return acc + dot_split(a_high, a_low, b_high, b_low)
    else:
        return tl.dot(a, b, acc, input_precision=PRECISION)
