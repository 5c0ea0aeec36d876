"""Products of tiles and accesses to maps that the kernels of nmf are made of.

Tensor cores multiply TF32 values, of 11 bits. An error of an update is carried through all later
ones, so a float32 factor goes in as the sum of two such values, and products of a step of a loop
are added up in float32 outside of the tensor cores, whose own sums are cut off instead of rounded.
Half precision is exact in TF32: a map in it goes in as it is.

Blocks of coefficients and bases have the number of the base first, [RANK, ...]: 64 rows are what a
group of four warps multiplies at once, however few the other index has.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .._products import split_tf32

PRECISION = tl.constexpr("tf32" if torch.version.hip is None else "ieee")


@triton.jit
def multiply(b_left, b_right, LEFT_EXACT: tl.constexpr, RIGHT_EXACT: tl.constexpr):
    """left right, of float32 values; those called exact are TF32 values already."""
    if LEFT_EXACT:
        b_high, b_low = split_tf32(b_right, True)
        b_sum = tl.dot(b_left, b_low, input_precision=PRECISION)
        return tl.dot(b_left, b_high, b_sum, input_precision=PRECISION)
    elif RIGHT_EXACT:
        b_high, b_low = split_tf32(b_left, True)
        b_sum = tl.dot(b_low, b_right, input_precision=PRECISION)
        return tl.dot(b_high, b_right, b_sum, input_precision=PRECISION)
    else:
        b_left_high, b_left_low = split_tf32(b_left, True)
        b_right_high, b_right_low = split_tf32(b_right, True)
        b_sum = tl.dot(b_left_high, b_right_low, input_precision=PRECISION)
        b_sum = tl.dot(b_left_low, b_right_high, b_sum, input_precision=PRECISION)
        return tl.dot(b_left_high, b_right_high, b_sum, input_precision=PRECISION)


@triton.jit
def load_map(p_x, b_channel, b_position, channels, positions, INNER: tl.constexpr):
    """A tile of an item's map as float32, [CHANNELS, POSITIONS]; zeros beyond its ends.

    p_x [channels, positions]: contiguous, or with INNER the channel index fastest.
    """
    if INNER:
        b_offset = b_position.to(tl.int64)[None, :] * channels + b_channel[:, None]
    else:
        b_offset = b_channel.to(tl.int64)[:, None] * positions + b_position[None, :]
    mask = (b_channel < channels)[:, None] & (b_position < positions)[None, :]
    return tl.load(p_x + b_offset, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def ranked(b_rank, b_row, rows, rank):
    """Offsets and mask [RANK, ROWS] of a tile of a matrix [rows, rank] in memory."""
    b_offset = b_row.to(tl.int64)[None, :] * rank + b_rank[:, None]
    return b_offset, (b_row < rows)[None, :] & (b_rank < rank)[:, None]


@triton.jit
def project(
    p_x,
    p_bases,
    b_position,
    channels,
    positions,
    width,
    CHUNK: tl.constexpr,
    RANK: tl.constexpr,
    INNER: tl.constexpr,
    EXACT: tl.constexpr,
):
    """bases^T x of a tile of positions: [RANK, POSITIONS].

    p_x as in load_map, exact where it is in half precision; p_bases [RANK, width], zeros from
    `channels` on.
    """
    b_rank = tl.arange(0, RANK)
    b_acc = tl.zeros([RANK, b_position.shape[0]], dtype=tl.float32)
    for start in range(0, width, CHUNK):
        b_channel = start + tl.arange(0, CHUNK)
        b_bases = tl.load(p_bases + b_rank[:, None] * width + b_channel[None, :])
        b_x = load_map(p_x, b_channel, b_position, channels, positions, INNER)
        b_acc += multiply(b_bases, b_x, False, EXACT)
    return b_acc


@triton.jit
def divide(b_dividend, b_divisor):
    """dividend / divisor, rounded to nearest but for very few values, without a branch.

    Divisors below 2^-128 count as 0.
    """
    b_inverse = 1.0 / b_divisor
    b_ratio = b_dividend * b_inverse
    b_rest = tl.fma(-b_ratio, b_divisor, b_dividend)
    return tl.where(tl.abs(b_rest) < float("inf"), tl.fma(b_rest, b_inverse, b_ratio), b_ratio)


@triton.jit
def multiply_square(
    p_square, b_rows, RANK: tl.constexpr, TRANSPOSED: tl.constexpr, WHOLE: tl.constexpr
):
    """square rows, of rows [RANK, COLUMNS] at hand; p_square [RANK, RANK].

    More than WHOLE rows are multiplied in two halves: their factors would fill the registers.
    """
    b_rank = tl.arange(0, RANK)
    COLUMN: tl.constexpr = RANK if TRANSPOSED else 1
    p_rows = p_square + b_rank[:, None] * (1 if TRANSPOSED else RANK)
    if RANK <= WHOLE:
        b_square = tl.load(p_rows + b_rank[None, :] * COLUMN)
        return multiply(b_square, b_rows, False, False)
    else:
        HALF: tl.constexpr = RANK // 2
        b_halves = tl.reshape(b_rows, [2, HALF, b_rows.shape[1]])
        b_upper, b_lower = tl.split(tl.permute(b_halves, [1, 2, 0]))
        p_half = p_rows + tl.arange(0, HALF)[None, :] * COLUMN
        b_product = multiply(tl.load(p_half), b_upper, False, False)
        tl.debug_barrier()  # keeps the halves apart
        p_half += HALF * COLUMN
        return b_product + multiply(tl.load(p_half), b_lower, False, False)


@triton.jit
def store_sums(p_sums, b_row, b_sum, RANK: tl.constexpr):
    """Rows of a table of sums [rows, RANK]."""
    tl.store(p_sums + b_row[:, None] * RANK + tl.arange(0, RANK)[None, :], b_sum)


@triton.jit
def sum_products(
    p_left,
    p_right,
    p_sums,
    first_row,
    begin,
    end,
    positions,
    rank,
    TILE: tl.constexpr,
    RANK: tl.constexpr,
):
    """left^T right over the positions from `begin` to `end`, to rows of a table of sums.

    p_left, p_right [positions, rank].
    """
    PART: tl.constexpr = min(RANK, 64)  # rows: more would fill the registers
    b_rank = tl.arange(0, RANK)
    for start in tl.range(0, RANK, PART, disable_licm=True):
        b_row = start + tl.arange(0, PART)
        b_sum = tl.zeros([PART, RANK], dtype=tl.float32)
        for first in range(begin, end, TILE):
            b_position = first + tl.arange(0, TILE)
            b_offset, mask = ranked(b_row, b_position, tl.minimum(end, positions), rank)
            b_left = tl.load(p_left + b_offset, mask=mask, other=0.0)
            b_offset, mask = ranked(b_rank, b_position, tl.minimum(end, positions), rank)
            b_right = tl.load(p_right + b_offset, mask=mask, other=0.0)
            b_sum += multiply(b_left, tl.trans(b_right), False, False)
        store_sums(p_sums, first_row + b_row, b_sum, RANK)
