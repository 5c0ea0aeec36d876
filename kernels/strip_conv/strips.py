"""The strips of a map: horizontal and vertical convolutions without a map between them.

A program walks down its columns. For every row it has the row convolutions of all strips, and adds
what they give to the rows that the columns reach, which stay in registers until they are complete.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .prepare import clear_rows
from .tiles import SIZES, map_place, pushed_down, taps_at, tile_of, weighed, window_at, zeros

PADDED = [*SIZES, "pitch", "padded"]


@triton.jit
def add_strips(
    p_x,
    p_parameters,
    p_out,
    number,
    sizes,
    pitch,
    padded,
    SIDES: tl.constexpr,
    BACKWARD: tl.constexpr,
    POSITIONS: tl.constexpr,
    LANES: tl.constexpr,
    INNER: tl.constexpr,
):
    """A tile of out = x + sum over strips of vertical(horizontal(x) + bias) + bias.

    With BACKWARD the convolutions are transposed, which commute with each other, and there are no
    biases. p_x [B, blocks, padded, pitch, LANES]; p_out [B, C, H, W], with BACKWARD a scratch map
    [B, blocks, H + KH // 2 + 1, W, LANES], zero in the rows below H.
    """
    KH: tl.constexpr = SIDES[0]
    R0: tl.constexpr = SIDES[2]
    C0: tl.constexpr = SIDES[3]
    R1: tl.constexpr = SIDES[4]
    C1: tl.constexpr = SIDES[5]
    R2: tl.constexpr = SIDES[6]
    C2: tl.constexpr = SIDES[7]
    S0: tl.constexpr = SIDES[0] * SIDES[1]
    S1: tl.constexpr = S0 + R0 + C0
    S2: tl.constexpr = S1 + R1 + C1
    BIASES: tl.constexpr = S2 + R2 + C2
    KERNELS: tl.constexpr = 3 + 2 * (R1 > 0) + 2 * (R2 > 0)
    UP: tl.constexpr = max(C0, C1, C2) // 2
    SIDE: tl.constexpr = max(R0, R1, R2) // 2
    _, _, height, width, _ = sizes
    tile = tile_of(number, sizes, width, POSITIONS, LANES)
    p_block = p_parameters + tile.block * ((BIASES + KERNELS) * LANES)
    rows_0 = taps_at(p_block, S0, R0, BACKWARD, tile.b_lane)
    rows_1 = taps_at(p_block, S1, R1, BACKWARD, tile.b_lane)
    rows_2 = taps_at(p_block, S2, R2, BACKWARD, tile.b_lane)
    columns_0 = taps_at(p_block, S0 + R0, C0, BACKWARD, tile.b_lane)
    columns_1 = taps_at(p_block, S1 + R1, C1, BACKWARD, tile.b_lane)
    columns_2 = taps_at(p_block, S2 + R2, C2, BACKWARD, tile.b_lane)
    shifts = taps_at(p_block, BIASES, KERNELS, False, tile.b_lane) + zeros(4, 1, LANES)
    b_bias = shifts[2]
    if R1 > 0:
        b_bias += shifts[4]
    if R2 > 0:
        b_bias += shifts[6]
    begin = tl.maximum(tile.top - UP, 0)
    step = pitch.to(tl.int64) * LANES
    p_plane = p_x + tile.plane * padded * step + (tile.b_column * LANES + tile.b_lane)
    p_row = p_plane + (UP + begin) * step
    p_base = p_plane + begin * step + SIDE * LANES
    if BACKWARD:
        row_step = width.to(tl.int64) * LANES
        below = height + KH // 2 + 1
        p_to = p_out + tile.plane * below * row_step + (tile.b_column * LANES + tile.b_lane)
        if tile.bottom == height:
            clear_rows(p_to, height, below, row_step, tile.b_column + tile.b_lane * 0 < width)
    else:
        b_offset, column_step = map_place(tile, sizes, INNER)
        row_step = width.to(tl.int64) * column_step
        p_to = p_out + b_offset + tile.b_column * column_step
    p_to += (begin - UP) * row_step
    sums = zeros(2 * UP + 1, POSITIONS, LANES)
    window = window_at(p_row, LANES, 2 * SIDE + 1)
    for y in range(begin, tile.bottom + UP):
        inside = y < height
        b_base = zeros(3, POSITIONS, LANES)
        if not BACKWARD:
            b_base = (
                tl.where(inside, shifts[1], 0.0),
                tl.where(inside, shifts[3], 0.0),
                tl.where(inside, shifts[5], 0.0),
            )
        b_row_0 = weighed(b_base[0], window, SIDE - R0 // 2, rows_0, 0, R0)
        if R1 > 0:
            b_row_1 = weighed(b_base[1], window, SIDE - R1 // 2, rows_1, 0, R1)
        if R2 > 0:
            b_row_2 = weighed(b_base[2], window, SIDE - R2 // 2, rows_2, 0, R2)
        p_row += step
        window = window_at(p_row, LANES, 2 * SIDE + 1)  # of the next row: there is one
        sums = pushed_down(sums, columns_0, C0, UP, b_row_0)
        if R1 > 0:
            sums = pushed_down(sums, columns_1, C1, UP, b_row_1)
        if R2 > 0:
            sums = pushed_down(sums, columns_2, C2, UP, b_row_2)
        b_out = sums[0] + tl.load(p_base)
        if not BACKWARD:
            b_out += b_bias
        tl.store(p_to, b_out.to(p_out.dtype.element_ty), mask=tile.owned & (y - UP >= tile.top))
        sums = sums[1:] + zeros(1, POSITIONS, LANES)
        p_base += step
        p_to += row_step


@triton.jit(do_not_specialize=PADDED)
def strips_kernel(
    p_a,
    p_parameters,
    p_out,
    batches,
    channels,
    height,
    width,
    rows,
    pitch,
    padded,
    SIDES: tl.constexpr,
    POSITIONS: tl.constexpr,
    LANES: tl.constexpr,
    INNER: tl.constexpr,
):
    """out = a + sum over strips of vertical(horizontal(a) + bias) + bias.

    p_a [B, blocks, padded, pitch, LANES] and p_parameters as prepare_strips_kernel writes them;
    p_out [B, C, H, W], channels last with INNER.
    Grid: the tiles of the map (see tiles.py). Reads a once and the rows that its columns reach
    above and below once more for every tile in a column; writes out once.
    """
    sizes = (batches, channels, height, width, rows)
    add_strips(p_a, p_parameters, p_out, tl.program_id(0), sizes, pitch, padded,
               SIDES, False, POSITIONS, LANES, INNER)  # fmt: skip
