"""What the strips read: the local convolution in a padded map, and all parameters side by side."""

from __future__ import annotations

import triton
import triton.language as tl

from . import plan
from .tiles import SIZES, channels_of, map_place, tile_of, tiles_of, weighed, zeros

PACKED = tl.constexpr(plan.PACKED)


@triton.jit
def masked_window(p_row, b_column, column_step, width, COUNT: tl.constexpr, owned):
    """COUNT neighbours around columns of a row of a map, zero outside the map and where not owned.

    p_row [1, LANES]: the row's first column; b_column [POSITIONS, 1]; owned [POSITIONS, LANES].
    """
    window = ()
    for t in tl.static_range(COUNT):
        b_at = b_column + (t - COUNT // 2)
        mask = owned & (b_at >= 0) & (b_at < width)
        window = window + (tl.load(p_row + b_at * column_step, mask=mask, other=0.0),)
    return window


@triton.jit
def clear_rows(p_row, first, last, step, mask):
    """Zeros in rows [first, last) of a scratch map, `step` (64 bits) elements apart."""
    b_zero = tl.zeros(mask.shape, tl.float32)
    for row in range(first, last):
        tl.store(p_row + row * step, b_zero, mask=mask)


@triton.jit
def pad_map(
    p_x,
    p_weight,
    p_bias,
    p_out,
    number,
    sizes,
    pitch,
    padded,
    biased,
    KH: tl.constexpr,
    KW: tl.constexpr,
    UP: tl.constexpr,
    SIDE: tl.constexpr,
    POSITIONS: tl.constexpr,
    LANES: tl.constexpr,
    INNER: tl.constexpr,
):
    """A tile of out = the local convolution of x plus bias (with KH = 0 of x itself), with zeros
    around: UP rows above, and SIDE columns to the left.

    p_x [B, C, H, W], p_out [B, blocks, padded, pitch, LANES].
    """
    _, channels, height, width, _ = sizes
    tile = tile_of(number, sizes, pitch, POSITIONS, LANES)  # its columns: of the padded map
    step = pitch.to(tl.int64) * LANES
    in_channels = tile.block * LANES + tile.b_lane < channels
    in_padded = (tile.b_column < pitch) & (tile.b_lane >= 0)
    b_column = tile.b_column - SIDE
    in_map = (b_column >= 0) & (b_column < width) & in_channels
    p_plane = p_out + tile.plane * padded * step + (tile.b_column * LANES + tile.b_lane)
    if tile.top == 0:
        clear_rows(p_plane, 0, UP, step, in_padded)
    if tile.bottom == height:
        clear_rows(p_plane, UP + height, padded, step, in_padded)
    b_offset, column_step = map_place(tile, sizes, INNER)
    p_map = p_x + b_offset
    row_step = width.to(tl.int64) * column_step
    HALF: tl.constexpr = KH // 2
    begin = tl.maximum(tile.top - HALF, 0)
    end = tl.minimum(tile.bottom + HALF, height)
    p_to = p_plane + (UP + begin - HALF) * step
    if KH == 0:
        for y in range(begin, end):
            p_row = p_map + y * row_step + b_column * column_step
            tl.store(p_to, tl.load(p_row, mask=in_map, other=0.0).to(tl.float32), mask=in_padded)
            p_to += step
    else:
        b_channel = channels_of(tile)
        taps = ()
        for t in tl.static_range(KH * KW):
            b_tap = tl.load(p_weight + b_channel * (KH * KW) + t, mask=in_channels, other=0.0)
            taps = taps + (b_tap.to(tl.float32),)
        has_bias = in_channels & (biased & 1 != 0)
        b_bias = tl.load(p_bias + b_channel, mask=has_bias, other=0.0).to(tl.float32)
        in_reach = in_channels & (b_column < width + KW)
        sums = zeros(KH, POSITIONS, LANES)
        p_row = p_map + begin * row_step
        window = masked_window(p_row, b_column, column_step, width, KW, in_reach)
        for y in range(begin, end):
            new = ()
            for i in tl.static_range(KH):
                new = new + (weighed(sums[i], window, 0, taps, (KH - 1 - i) * KW, KW),)
            p_row += tl.where(y + 1 < height, row_step, 0)
            window = masked_window(p_row, b_column, column_step, width, KW, in_reach)
            b_a = tl.where(in_map, new[0] + b_bias, 0.0)
            tl.store(p_to, b_a, mask=in_padded & (y - HALF >= tile.top))
            sums = new[1:] + zeros(1, POSITIONS, LANES)
            p_to += step
        for k in tl.static_range(HALF):
            row = end - HALF + k
            b_a = tl.where(in_map, sums[k] + b_bias, 0.0)
            tl.store(p_to, b_a, mask=in_padded & (row >= tile.top) & (row < tile.bottom))
            p_to += step


@triton.jit
def pack(
    p_weight,
    p_bias,
    p_to,
    b_channel,
    channels,
    tap,
    has_bias,
    FIRST: tl.constexpr,
    COUNT: tl.constexpr,
    BIAS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Tap `tap` of a weight [C, COUNT] of some channels as row FIRST + tap, the bias as row BIAS.

    p_to: of these channels, rows LANES apart.
    """
    in_channels = b_channel < channels
    in_lanes = b_channel < tl.cdiv(channels, LANES) * LANES
    is_tap = tap < COUNT
    b_tap = tl.load(p_weight + b_channel * COUNT + tap, mask=in_channels & is_tap, other=0.0)
    tl.store(p_to + (FIRST + tap) * LANES, b_tap.to(tl.float32), mask=in_lanes & is_tap)
    b_bias = tl.load(p_bias + b_channel, mask=in_channels & (has_bias != 0), other=0.0)
    tl.store(p_to + BIAS * LANES, b_bias.to(tl.float32), mask=in_lanes & (tap == 0))


@triton.jit(do_not_specialize=[*SIZES, "pitch", "padded", "biased"])
def prepare_strips_kernel(
    p_x,
    p_grad,
    p_a,
    p_padded,
    p_parameters,
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
    batches,
    channels,
    height,
    width,
    rows,
    pitch,
    padded,
    biased,
    SIDES: tl.constexpr,
    BACKWARD: tl.constexpr,
    POSITIONS: tl.constexpr,
    LANES: tl.constexpr,
    INNER: tl.constexpr,
):
    """a = local(x) + bias with zeros around; the parameters side by side; with BACKWARD also grad
    with zeros around.

    p_x, p_grad [B, C, H, W], channels last with INNER; p_a, p_padded [B, blocks, padded, pitch,
    LANES] float32; weights [C, taps] and biases [C] of the kernels, of which `biased` has a bit for
    each that has a bias; p_parameters [blocks, taps + kernels, LANES] float32 (see tiles.py).
    Grid: the tiles of the padded map (see tiles.py), twice with BACKWARD, then the blocks of
    channels. Reads x and grad once, a few rows of x twice; writes 4 bytes an element of each map.
    """
    KH: tl.constexpr = SIDES[0]
    KW: tl.constexpr = SIDES[1]
    R0: tl.constexpr = SIDES[2]
    C0: tl.constexpr = SIDES[3]
    R1: tl.constexpr = SIDES[4]
    C1: tl.constexpr = SIDES[5]
    R2: tl.constexpr = SIDES[6]
    C2: tl.constexpr = SIDES[7]
    UP: tl.constexpr = max(C0, C1, C2) // 2
    SIDE: tl.constexpr = max(R0, R1, R2) // 2
    MOST: tl.constexpr = max(KH * KW, R0, C0, R1, C1, R2, C2)
    sizes = (batches, channels, height, width, rows)
    tiles = tiles_of(sizes, pitch, POSITIONS, LANES)
    number = tl.program_id(0)
    if number < tiles:
        pad_map(p_x, p_weight, p_bias, p_a, number, sizes, pitch, padded, biased,
                KH, KW, UP, SIDE, POSITIONS, LANES, INNER)  # fmt: skip
    elif number < tiles * (1 + BACKWARD):
        pad_map(p_grad, p_weight, p_bias, p_padded, number - tiles, sizes, pitch, padded, biased,
                0, 0, UP, SIDE, POSITIONS, LANES, INNER)  # fmt: skip
    else:
        tap = (number - tiles * (1 + BACKWARD)) % MOST
        block = (number - tiles * (1 + BACKWARD)) // MOST
        b_channel = block * PACKED + tl.arange(0, PACKED)
        S0: tl.constexpr = KH * KW
        S1: tl.constexpr = S0 + R0 + C0
        S2: tl.constexpr = S1 + R1 + C1
        B: tl.constexpr = S2 + R2 + C2
        KERNELS: tl.constexpr = 3 + 2 * (R1 > 0) + 2 * (R2 > 0)
        p_to = p_parameters + b_channel // LANES * ((B + KERNELS) * LANES) + b_channel % LANES
        pack(p_weight, p_bias, p_to, b_channel, channels, tap, biased & 1, 0, S0, B, LANES)
        pack(
            p_row_0, p_row_bias_0, p_to, b_channel, channels, tap, biased & 2, S0, R0, B + 1, LANES
        )
        pack(
            p_column_0,
            p_column_bias_0,
            p_to,
            b_channel,
            channels,
            tap,
            biased & 4,
            S0 + R0,
            C0,
            B + 2,
            LANES,
        )
        if R1 > 0:
            pack(
                p_row_1,
                p_row_bias_1,
                p_to,
                b_channel,
                channels,
                tap,
                biased & 8,
                S1,
                R1,
                B + 3,
                LANES,
            )
            pack(
                p_column_1,
                p_column_bias_1,
                p_to,
                b_channel,
                channels,
                tap,
                biased & 16,
                S1 + R1,
                C1,
                B + 4,
                LANES,
            )
        if R2 > 0:
            pack(
                p_row_2,
                p_row_bias_2,
                p_to,
                b_channel,
                channels,
                tap,
                biased & 32,
                S2,
                R2,
                B + 5,
                LANES,
            )
            pack(
                p_column_2,
                p_column_bias_2,
                p_to,
                b_channel,
                channels,
                tap,
                biased & 64,
                S2 + R2,
                C2,
                B + 6,
                LANES,
            )
