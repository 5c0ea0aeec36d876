"""Backward of the local convolution, and the end of all sums."""

from __future__ import annotations

import triton
import triton.language as tl

from .prepare import masked_window
from .tiles import SIZES, map_place, store_sums, taps_at, tile_of, weighed, zeros


@triton.jit(do_not_specialize=[*SIZES, "parameters", "taps_in_all", "parts"])
def local_backward_kernel(
    p_grad_a,
    p_x,
    p_parameters,
    p_dx,
    p_sums,
    batches,
    channels,
    height,
    width,
    rows,
    parameters,
    taps_in_all,
    parts,
    KH: tl.constexpr,
    KW: tl.constexpr,
    POSITIONS: tl.constexpr,
    LANES: tl.constexpr,
    INNER: tl.constexpr,
):
    """dx = local^T(da), and the partial sums of the local taps, of da with x, and of the bias.

    p_grad_a [B, blocks, H + KH // 2 + 1, W, LANES] float32, zero in the rows below H; p_x, p_dx
    [B, C, H, W], channels last with INNER; p_parameters [blocks, parameters, LANES], the local
    taps first; p_sums [parameters, parts, C], where the bias follows the taps of all kernels.
    Grid: the tiles of the map (see tiles.py). Reads da and x, writes dx once.
    """
    HALF: tl.constexpr = KH // 2
    sizes = (batches, channels, height, width, rows)
    tile = tile_of(tl.program_id(0), sizes, width, POSITIONS, LANES)
    taps = taps_at(p_parameters + tile.block * parameters * LANES, 0, KH * KW, True, tile.b_lane)
    grad_step = width.to(tl.int64) * LANES
    p_plane = p_grad_a + tile.plane * (height + HALF + 1) * grad_step + tile.b_lane
    b_offset, column_step = map_place(tile, sizes, INNER)
    row_step = width.to(tl.int64) * column_step
    p_from = p_x + b_offset + tile.top * row_step
    p_to = p_dx + b_offset + tile.b_column * column_step + tile.top * row_step
    p_row = p_plane + (tile.top - HALF) * grad_step
    sums = zeros(KH, POSITIONS, LANES)
    centres = ()  # of da, the last rows
    for k in tl.static_range(2 * HALF):
        in_map = tile.owned & (tile.top - HALF + k >= 0)
        window = masked_window(p_row, tile.b_column, LANES, width, KW, in_map)
        new = ()
        for i in tl.static_range(KH):
            new = new + (weighed(sums[i], window, 0, taps, (KH - 1 - i) * KW, KW),)
        sums = new[1:] + zeros(1, POSITIONS, LANES)
        centres = centres + (window[KW // 2],)
        p_row += grad_step
    below = masked_window(p_row, tile.b_column, LANES, width, KW, tile.owned)
    beside = masked_window(p_from, tile.b_column, column_step, width, KW, tile.owned)
    tap_sums = zeros(KH * KW, POSITIONS, LANES)
    b_bias = tl.zeros([POSITIONS, LANES], tl.float32)
    for y in range(tile.top, tile.bottom):
        new = ()
        for i in tl.static_range(KH):
            new = new + (weighed(sums[i], below, 0, taps, (KH - 1 - i) * KW, KW),)
        centres = centres + (below[KW // 2],)
        added = ()
        for i in tl.static_range(KH):
            for j in tl.static_range(KW):
                # Tap (i, j) of the result in row y + HALF - i meets row y of x.
                b_product = centres[KH - 1 - i] * beside[j].to(tl.float32)
                added = added + (tap_sums[i * KW + j] + b_product,)
        tap_sums = added
        b_bias += centres[HALF]
        p_row += grad_step
        p_from += tl.where(y + 1 < height, row_step, 0)
        below = masked_window(p_row, tile.b_column, LANES, width, KW, tile.owned)
        beside = masked_window(p_from, tile.b_column, column_step, width, KW, tile.owned)
        tl.store(p_to, new[0].to(p_dx.dtype.element_ty), mask=tile.owned)
        sums = new[1:] + zeros(1, POSITIONS, LANES)
        centres = centres[1:]
        p_to += row_step
    store_sums(p_sums, 0, tap_sums, KH * KW, tile, channels, parts)
    store_sums(p_sums, taps_in_all, (b_bias,), 1, tile, channels, parts)


@triton.jit
def store_total(p_weight, p_bias, b_total, b_channel, mask, row, FIRST, COUNT, is_bias):
    """The gradient of a tap or a bias, if `row` is one of this kernel's."""
    tap = row - FIRST
    is_tap = mask & (tap >= 0) & (tap < COUNT)
    b_value = b_total.to(p_weight.dtype.element_ty)
    tl.store(p_weight + b_channel * COUNT + tap, b_value, mask=is_tap)
    tl.store(p_bias + b_channel, b_value, mask=mask & is_bias)


@triton.jit(do_not_specialize=["channels", "parts", "local_parts", "strip_parts", "biased"])
def strip_totals_kernel(
    p_sums,
    p_weight,
    p_row_0,
    p_column_0,
    p_row_1,
    p_column_1,
    p_row_2,
    p_column_2,
    p_bias,
    p_row_bias_0,
    p_column_bias_0,
    p_row_bias_1,
    p_column_bias_1,
    p_row_bias_2,
    p_column_bias_2,
    channels,
    parts,
    local_parts,
    strip_parts,
    biased,
    SIDES: tl.constexpr,
    PARTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Gradients of all weights [C, taps] and biases [C]: the sum of the parts, in order.

    p_sums [taps + kernels, parts, C] float32, of which the local kernel has the first local_parts,
    the strips the first strip_parts; `biased` has a bit for every kernel with a bias.
    Grid: (taps + kernels) * ceil(C / CHANNELS); one program owns a tap or a bias of some channels.
    Reads the sums once.
    """
    L: tl.constexpr = SIDES[0] * SIDES[1]
    R0: tl.constexpr = SIDES[2]
    C0: tl.constexpr = SIDES[3]
    R1: tl.constexpr = SIDES[4]
    C1: tl.constexpr = SIDES[5]
    R2: tl.constexpr = SIDES[6]
    C2: tl.constexpr = SIDES[7]
    S1: tl.constexpr = L + R0 + C0
    S2: tl.constexpr = S1 + R1 + C1
    B: tl.constexpr = S2 + R2 + C2
    TOTAL: tl.constexpr = B + 3 + 2 * (R1 > 0) + 2 * (R2 > 0)
    row = tl.program_id(0) % TOTAL
    b_channel = tl.program_id(0) // TOTAL * CHANNELS + tl.arange(0, CHANNELS)
    b_part = tl.arange(0, PARTS)[:, None]
    mask = b_channel < channels
    b_sum = tl.zeros([PARTS, CHANNELS], tl.float64)
    count = tl.where((row < L) | (row == B), local_parts, strip_parts)
    p_row = p_sums + row.to(tl.int64) * parts * channels + b_channel[None, :]
    for first in range(0, count, PARTS):
        b_at = (first + b_part).to(tl.int64)
        b_sum += tl.load(p_row + b_at * channels, mask=(b_at < count) & mask[None, :], other=0.0)
    b_all = tl.sum(b_sum, axis=0).to(tl.float32)
    # The number of the kernel whose bias the row is, if it has one.
    at = row - B
    bias = tl.where((at >= 0) & (((biased >> tl.maximum(at, 0)) & 1) != 0), at, -1)
    store_total(p_weight, p_bias, b_all, b_channel, mask, row, 0, L, bias == 0)
    store_total(p_row_0, p_row_bias_0, b_all, b_channel, mask, row, L, R0, bias == 1)
    store_total(p_column_0, p_column_bias_0, b_all, b_channel, mask, row, L + R0, C0, bias == 2)
    if R1 > 0:
        store_total(p_row_1, p_row_bias_1, b_all, b_channel, mask, row, S1, R1, bias == 3)
        store_total(
            p_column_1, p_column_bias_1, b_all, b_channel, mask, row, S1 + R1, C1, bias == 4
        )
    if R2 > 0:
        store_total(p_row_2, p_row_bias_2, b_all, b_channel, mask, row, S2, R2, bias == 5)
        store_total(
            p_column_2, p_column_bias_2, b_all, b_channel, mask, row, S2 + R2, C2, bias == 6
        )
