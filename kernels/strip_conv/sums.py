"""Gradients of the strips' taps and biases: partial sums over the tiles of a map.

With h_s = horizontal_s(a) + bias and gh_s = vertical_s^T(grad), the gradient of a column's tap is
the sum of grad with h_s, that of a row's tap the sum of gh_s with a. A program that walks down
columns has both factors of either sum at hand: a row of a, and the rows of grad that a column sees.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .strips import PADDED, add_strips
from .tiles import store_sums, taps_at, tile_of, tiles_of, weighed, window_at, zeros


@triton.jit
def add_products(sums, b_factor, values, AT: tl.constexpr, COUNT: tl.constexpr):
    """sums[t] + b_factor * values[AT + t] for t < COUNT."""
    new = ()
    for t in tl.static_range(COUNT):
        new = new + (sums[t] + b_factor * values[AT + t],)
    return new


@triton.jit
def turned(values, AT: tl.constexpr, COUNT: tl.constexpr):
    """values[AT], values[AT - 1], ..., COUNT of them."""
    found = ()
    for t in tl.static_range(COUNT):
        found = found + (values[AT - t],)
    return found


@triton.jit
def sum_strips(
    p_a,
    p_grad,
    p_parameters,
    p_sums,
    number,
    sizes,
    pitch,
    padded,
    parts,
    SIDES: tl.constexpr,
    OF_ROWS: tl.constexpr,
    POSITIONS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Sums over a tile for the taps and biases of all rows (OF_ROWS) or of all columns.

    p_a, p_grad [B, blocks, padded, pitch, LANES]; p_sums [taps + kernels, parts, C].
    """
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
    _, channels, _, width, _ = sizes
    tile = tile_of(number, sizes, width, POSITIONS, LANES)
    p_block = p_parameters + tile.block * ((BIASES + KERNELS) * LANES)
    shifts = taps_at(p_block, BIASES, KERNELS, False, tile.b_lane) + zeros(4, 1, LANES)
    if OF_ROWS:  # the columns' taps, from the last to the first as rows of grad come
        taps_0 = taps_at(p_block, S0 + R0, C0, True, tile.b_lane)
        taps_1 = taps_at(p_block, S1 + R1, C1, True, tile.b_lane)
        taps_2 = taps_at(p_block, S2 + R2, C2, True, tile.b_lane)
    else:
        taps_0 = taps_at(p_block, S0, R0, False, tile.b_lane)
        taps_1 = taps_at(p_block, S1, R1, False, tile.b_lane)
        taps_2 = taps_at(p_block, S2, R2, False, tile.b_lane)
    step = pitch.to(tl.int64) * LANES
    b_place = tile.plane * padded * step + (tile.b_column * LANES + tile.b_lane)
    p_row = p_a + b_place + (UP + tile.top) * step
    p_ahead = p_grad + b_place + tile.top * step + SIDE * LANES
    ahead = ()  # rows y - UP to y + UP - 1 of grad
    for _ in tl.static_range(2 * UP):
        ahead = ahead + (tl.load(p_ahead),)
        p_ahead += step
    b_newest = tl.load(p_ahead)
    window = window_at(p_row, LANES, 2 * SIDE + 1)
    sums_0 = zeros(R0 if OF_ROWS else C0, POSITIONS, LANES)
    sums_1 = zeros(R1 if OF_ROWS else C1, POSITIONS, LANES)
    sums_2 = zeros(R2 if OF_ROWS else C2, POSITIONS, LANES)
    totals = zeros(3, POSITIONS, LANES)
    b_zero = tl.zeros([POSITIONS, LANES], tl.float32)
    for _ in range(tile.top, tile.bottom):
        ahead = ahead + (b_newest,)
        if OF_ROWS:
            b_0 = weighed(b_zero, ahead, UP - C0 // 2, taps_0, 0, C0)
            sums_0 = add_products(sums_0, b_0, window, SIDE - R0 // 2, R0)
            b_1 = b_zero
            b_2 = b_zero
            if R1 > 0:
                b_1 = weighed(b_zero, ahead, UP - C1 // 2, taps_1, 0, C1)
                sums_1 = add_products(sums_1, b_1, window, SIDE - R1 // 2, R1)
            if R2 > 0:
                b_2 = weighed(b_zero, ahead, UP - C2 // 2, taps_2, 0, C2)
                sums_2 = add_products(sums_2, b_2, window, SIDE - R2 // 2, R2)
            totals = (totals[0] + b_0, totals[1] + b_1, totals[2] + b_2)
        else:
            b_0 = weighed(shifts[1], window, SIDE - R0 // 2, taps_0, 0, R0)
            sums_0 = add_products(sums_0, b_0, turned(ahead, UP + C0 // 2, C0), 0, C0)
            if R1 > 0:
                b_1 = weighed(shifts[3], window, SIDE - R1 // 2, taps_1, 0, R1)
                sums_1 = add_products(sums_1, b_1, turned(ahead, UP + C1 // 2, C1), 0, C1)
            if R2 > 0:
                b_2 = weighed(shifts[5], window, SIDE - R2 // 2, taps_2, 0, R2)
                sums_2 = add_products(sums_2, b_2, turned(ahead, UP + C2 // 2, C2), 0, C2)
            totals = (totals[0] + ahead[UP], totals[1], totals[2])
        p_row += step
        p_ahead += step
        window = window_at(p_row, LANES, 2 * SIDE + 1)  # of the next row: there is one
        b_newest = tl.load(p_ahead)
        ahead = ahead[1:]
    if OF_ROWS:
        store_sums(p_sums, S0, sums_0, R0, tile, channels, parts)
        store_sums(p_sums, BIASES + 1, totals, 1, tile, channels, parts)
        if R1 > 0:
            store_sums(p_sums, S1, sums_1, R1, tile, channels, parts)
            store_sums(p_sums, BIASES + 3, totals[1:], 1, tile, channels, parts)
        if R2 > 0:
            store_sums(p_sums, S2, sums_2, R2, tile, channels, parts)
            store_sums(p_sums, BIASES + 5, totals[2:], 1, tile, channels, parts)
    else:
        store_sums(p_sums, S0 + R0, sums_0, C0, tile, channels, parts)
        store_sums(p_sums, BIASES + 2, totals, 1, tile, channels, parts)
        if R1 > 0:
            store_sums(p_sums, S1 + R1, sums_1, C1, tile, channels, parts)
            store_sums(p_sums, BIASES + 4, totals, 1, tile, channels, parts)
        if R2 > 0:
            store_sums(p_sums, S2 + R2, sums_2, C2, tile, channels, parts)
            store_sums(p_sums, BIASES + 6, totals, 1, tile, channels, parts)


@triton.jit(do_not_specialize=[*PADDED, "parts"])
def strips_backward_kernel(
    p_a,
    p_grad,
    p_parameters,
    p_grad_a,
    p_sums,
    batches,
    channels,
    height,
    width,
    rows,
    pitch,
    padded,
    parts,
    SIDES: tl.constexpr,
    POSITIONS: tl.constexpr,
    LANES: tl.constexpr,
    INNER: tl.constexpr,
):
    """da = grad + sum over strips of horizontal^T(vertical^T(grad)), and the partial sums of the
    gradients of the strips' taps and biases.

    p_a, p_grad [B, blocks, padded, pitch, LANES] and p_parameters as prepare_strips_kernel writes
    them; p_grad_a [B, blocks, H + KH // 2 + 1, W, LANES] float32, its rows below H zero; p_sums
    [taps + kernels, parts, C] float32, a part for every tile of a block's channels, or for every
    column of those (see store_sums).
    Grid: the tiles of the map (see tiles.py) three times: for da, for the taps of columns, for
    those of rows. Reads grad three times and a twice (caches hold them), writes da once.
    """
    sizes = (batches, channels, height, width, rows)
    tiles = tiles_of(sizes, width, POSITIONS, LANES)
    number = tl.program_id(0)
    if number < tiles:
        add_strips(p_grad, p_parameters, p_grad_a, number, sizes, pitch, padded,
                   SIDES, True, POSITIONS, LANES, INNER)  # fmt: skip
    elif number < 2 * tiles:
        sum_strips(p_a, p_grad, p_parameters, p_sums, number - tiles, sizes, pitch, padded,
                   parts, SIDES, False, POSITIONS, LANES)  # fmt: skip
    else:
        sum_strips(p_a, p_grad, p_parameters, p_sums, number - 2 * tiles, sizes, pitch, padded,
                   parts, SIDES, True, POSITIONS, LANES)  # fmt: skip
