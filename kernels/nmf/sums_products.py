"""Products of tiles that the kernels of nmf are made of.

Everything is float32, with products on CUDA cores: an error of an update is carried through all
later ones, so nothing is rounded to the operands of tensor cores.

Tables of sums are padded to RANK columns, with zeros; all other matrices have `rank` columns and
are read under masks, so what stands in padding of tiles is never summed over.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._tiles import tile_pointers


@triton.jit
def sum_tables(p_tables, stride, count, b_offset, PARTS: tl.constexpr):
    """Sum of `count` tables `stride` elements apart, at the 2-D offsets b_offset.

    The order is the same in every run: PARTS at a time as a tree, then one after the other.
    """
    b_part = tl.arange(0, PARTS)
    acc = tl.zeros(b_offset.shape, dtype=tl.float32)
    for start in range(0, count, PARTS):
        b_table = (start + b_part).to(tl.int64)[:, None, None] * stride + b_offset[None, :, :]
        inside = (start + b_part < count)[:, None, None]
        acc += tl.sum(tl.load(p_tables + b_table, mask=inside, other=0.0), axis=0)
    return acc


@triton.jit
def project_positions(
    p_x,
    p_bases,
    b_position,
    positions,
    channels,
    rank,
    CHUNK: tl.constexpr,
    RANK: tl.constexpr,
    INNER: tl.constexpr,
):
    """x^T bases of a tile of positions: [POSITIONS, RANK].

    p_x [channels, positions] (INNER: channel index fastest), p_bases [channels, rank].
    """
    b_channel = tl.arange(0, CHUNK)
    b_rank = tl.arange(0, RANK)
    p_tile = tile_pointers(p_x, b_position, b_channel, channels, positions, INNER)
    p_rows = p_bases + b_channel[:, None] * rank + b_rank[None, :]
    in_map = (b_position < positions)[:, None]
    in_rank = (b_rank < rank)[None, :]
    acc = tl.zeros([b_position.shape[0], RANK], dtype=tl.float32)
    for start in range(0, channels, CHUNK):
        inside = start + b_channel < channels
        b_x = tl.load(p_tile, mask=in_map & inside[None, :], other=0.0)  # [POSITIONS, CHUNK]
        b_bases = tl.load(p_rows, mask=inside[:, None] & in_rank, other=0.0)  # [CHUNK, RANK]
        acc = tl.dot(b_x, b_bases, acc, input_precision="ieee")
        if INNER:
            p_tile += CHUNK
        else:
            p_tile += positions.to(tl.int64) * CHUNK
        p_rows += CHUNK * rank
    return acc


@triton.jit
def multiply_square(
    p_rows,
    squares,
    b_row,
    row_count,
    rank,
    CHUNK: tl.constexpr,
    RANK: tl.constexpr,
    PARTS: tl.constexpr,
    SYMMETRIC: tl.constexpr,
):
    """rows M, with SYMMETRIC rows (M + M^T): [ROWS, RANK]; M is the sum of the squares.

    p_rows [row_count, rank]; squares: where the first of some tables [RANK, RANK] is, the elements
    from one to the next, and how many there are.
    """
    p_squares, stride, count = squares
    b_k = tl.arange(0, CHUNK)
    b_rank = tl.arange(0, RANK)
    in_rows = (b_row < row_count)[:, None]
    acc = tl.zeros([b_row.shape[0], RANK], dtype=tl.float32)
    for start in range(0, rank, CHUNK):
        b_inner = start + b_k
        p_tile = p_rows + b_row.to(tl.int64)[:, None] * rank + b_inner[None, :]
        b_left = tl.load(p_tile, mask=in_rows & (b_inner < rank)[None, :], other=0.0)
        b_square = sum_tables(
            p_squares, stride, count, b_inner[:, None] * RANK + b_rank[None, :], PARTS
        )
        if SYMMETRIC:
            b_square += sum_tables(
                p_squares, stride, count, b_rank[None, :] * RANK + b_inner[:, None], PARTS
            )
        acc = tl.dot(b_left, b_square, acc, input_precision="ieee")
    return acc


@triton.jit
def accumulate_rows(
    p_left,
    p_right,
    b_row,
    begin,
    end,
    length,
    row_count,
    rank,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    RANK: tl.constexpr,
    INNER: tl.constexpr,
):
    """sum over n in [begin, end) of left[row, n] right[n]: [ROWS, RANK].

    p_left [row_count, length] (INNER: row index fastest), p_right [length, rank].
    """
    b_n = begin + tl.arange(0, CHUNK)
    b_rank = tl.arange(0, RANK)
    if INNER:
        p_tile = p_left + b_n.to(tl.int64)[None, :] * row_count + b_row[:, None]
    else:
        p_tile = p_left + b_row.to(tl.int64)[:, None] * length + b_n[None, :]
    p_rows = p_right + b_n.to(tl.int64)[:, None] * rank + b_rank[None, :]
    in_rows = (b_row < row_count)[:, None]
    in_rank = (b_rank < rank)[None, :]
    acc = tl.zeros([ROWS, RANK], dtype=tl.float32)
    for start in range(begin, end, CHUNK):
        inside = start + tl.arange(0, CHUNK) < end
        b_left = tl.load(p_tile, mask=in_rows & inside[None, :], other=0.0)  # [ROWS, CHUNK]
        b_right = tl.load(p_rows, mask=inside[:, None] & in_rank, other=0.0)  # [CHUNK, RANK]
        acc = tl.dot(b_left, b_right, acc, input_precision="ieee")
        if INNER:
            p_tile += row_count.to(tl.int64) * CHUNK
        else:
            p_tile += CHUNK
        p_rows += CHUNK * rank
    return acc


@triton.jit
def store_gram(
    p_left,
    p_right,
    p_square,
    begin,
    end,
    channels,
    rank,
    CHUNK: tl.constexpr,
    RANK: tl.constexpr,
):
    """square [RANK, RANK] = sum over rows d in [begin, end) of left[d]^T right[d].

    p_left, p_right [channels, rank].
    """
    ROWS: tl.constexpr = min(RANK, 64)  # an accumulator of more rows would fill the registers
    b_rank = tl.arange(0, RANK)
    for first in tl.static_range(0, RANK, ROWS):
        b_row = first + tl.arange(0, ROWS)
        acc = accumulate_rows(
            p_left, p_right, b_row, begin, end, channels, rank, rank, ROWS, CHUNK, RANK, True
        )
        tl.store(p_square + b_row[:, None] * RANK + b_rank[None, :], acc)
