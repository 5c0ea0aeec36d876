"""Products of positions with their halos on tensor cores, and sums over windows.

Nothing is rounded to half precision on the way: what is summed with weights has them in two parts
of half precision. In float32 scores are made of three TF32 products, sums of six bfloat16 ones:
both lose about 2^-22 of a product.

A weight outside a window is zero, but zero times infinity is not; nor do the parts of an infinite
number add up to it. A program whose results are not all finite begins again, EXACT.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._rare import hidden_zero
from .tiles import corners, halo_cells, places, sees, windows

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def load_rows(p_map, b_offset, inside, start, channels, CHANNELS: tl.constexpr):
    """[positions, CHANNELS] from `start` on, zeros outside the map and past the channels."""
    valid = inside[:, None] & (start + tl.arange(0, CHANNELS) < channels)[None, :]
    return tl.load(p_map + b_offset, mask=valid, other=0.0)


@triton.jit
def row_offsets(b_position, channels, CHANNELS: tl.constexpr):
    """[positions, CHANNELS]: offsets in an item [positions, channels]."""
    return b_position[:, None] * channels + tl.arange(0, CHANNELS)[None, :]


@triton.jit
def beyond_tf32(b_x, EXACT: tl.constexpr):
    """What a tensor core cuts off a float32 number; with EXACT zero for what is not finite."""
    b_rest = b_x - cut(b_x, -0x2000)
    if EXACT:
        b_rest = tl.where(tl.abs(b_x) < float("inf"), b_rest, 0.0)
    # Cut off in its turn, but half a step up: rounded.
    return (b_rest.to(tl.int32, bitcast=True) + 0x1000).to(tl.float32, bitcast=True)


@triton.jit
def halo_products(
    p_own,
    p_met,
    tile,
    channels,
    CHANNELS: tl.constexpr,
    KEPT: tl.constexpr,
    EXACT: tl.constexpr,
    SWAPPED: tl.constexpr,
):
    """[OWN, MET] float32: <own[n], met[m]> of all positions of a tile with all of its halo.

    p_own, p_met [positions, channels]: rows of one item. With SWAPPED the same sums in the same
    order as for a pair the other way round: an error of a large score must be the same in both.
    """
    b_own = row_offsets(tile.b_own, channels, CHANNELS)
    b_met = row_offsets(tile.b_met, channels, CHANNELS)
    acc = tl.zeros([b_own.shape[0], b_met.shape[0]], tl.float32)
    for start in range(0, channels, CHANNELS):
        b_a = load_rows(p_own + start, b_own, tile.own_inside, start, channels, CHANNELS)
        b_b = load_rows(p_met + start, b_met, tile.met_inside, start, channels, CHANNELS)
        if KEPT == 0:
            b_a_rest = beyond_tf32(b_a, EXACT)
            b_b_rest = beyond_tf32(b_b, EXACT)
            b_a_main, b_b_main = b_a, b_b
            if EXACT:
                b_a_main = tl.where(tl.abs(b_a) < float("inf"), b_a, 0.0)
                b_b_main = tl.where(tl.abs(b_b) < float("inf"), b_b, 0.0)
            acc = tl.dot(b_a_rest, tl.trans(b_b_rest), acc, input_precision="tf32")
            if SWAPPED:
                acc = tl.dot(b_a_main, tl.trans(b_b_rest), acc, input_precision="tf32")
                acc = tl.dot(b_a_rest, tl.trans(b_b_main), acc, input_precision="tf32")
            else:
                acc = tl.dot(b_a_rest, tl.trans(b_b_main), acc, input_precision="tf32")
                acc = tl.dot(b_a_main, tl.trans(b_b_rest), acc, input_precision="tf32")
            acc = tl.dot(b_a, tl.trans(b_b), acc, input_precision="tf32")
        else:
            acc = tl.dot(b_a, tl.trans(b_b), acc)
    return acc


@triton.jit
def cut(b_x, KEPT: tl.constexpr):
    """float32 without the bits that KEPT masks out."""
    return (b_x.to(tl.int32, bitcast=True) & KEPT).to(tl.float32, bitcast=True)


@triton.jit
def split(b_x, DTYPE, KEPT: tl.constexpr):
    """float32 as a sum of two numbers of DTYPE."""
    b_high = cut(b_x, KEPT)
    return b_high.to(DTYPE), (b_x - b_high).to(DTYPE)


@triton.jit
def split_in_three(b_x):
    """float32 as a sum of three bfloat16 numbers."""
    b_first = cut(b_x, -0x10000)
    b_rest = b_x - b_first
    b_second = cut(b_rest, -0x10000)
    return (
        b_first.to(tl.bfloat16),
        b_second.to(tl.bfloat16),
        (b_rest - b_second).to(tl.bfloat16),
    )


@triton.jit
def column_pieces(b_x, PIECES: tl.constexpr):
    """[rows, columns] as [PIECES, rows, columns / PIECES]; for one piece x itself."""
    if PIECES == 1:
        return b_x
    else:
        pieces: tl.constexpr = [b_x.shape[0], PIECES, b_x.shape[1] // PIECES]
        return tl.permute(tl.reshape(b_x, pieces), (1, 0, 2))


@triton.jit
def row_pieces(b_x, PIECES: tl.constexpr):
    """[rows, columns] as [PIECES, rows / PIECES, columns]; for one piece x itself."""
    if PIECES == 1:
        return b_x
    else:
        return tl.reshape(b_x, [PIECES, b_x.shape[0] // PIECES, b_x.shape[1]])


@triton.jit
def store_window_sums(
    b_weights,
    b_factor,
    p_met,
    p_out,
    part,
    tile,
    CHANNELS: tl.constexpr,
    KEPT: tl.constexpr,
    EXACT: tl.constexpr,
):
    """out[n] = factor[n] * sum over the halo of weights[n, m] * met[m], for some channels.

    b_weights [OWN, MET] float32, zero outside the windows; b_factor [OWN].
    p_met, p_out [positions, channels]: rows of one item. part: first channel, end, channels.
    Returns how many of the tile's positions have results that are not finite.
    """
    if EXACT:
        store_exact_sums(b_weights, b_factor, p_met, p_out, part, tile, 16)
        bad = 0
    else:
        bad = multiply_window_sums(b_weights, b_factor, p_met, p_out, part, tile, CHANNELS, KEPT)
    return bad


@triton.jit
def multiply_window_sums(
    b_weights, b_factor, p_met, p_out, part, tile, CHANNELS: tl.constexpr, KEPT: tl.constexpr
):
    """The same as products of matrices, of weights in parts that these can multiply."""
    first, end, channels = part
    if KEPT == -0x2000:
        # float16 has no room below 2^-14: rows are brought to a largest weight of one.
        b_size = tl.max(tl.abs(b_weights), axis=1)
        b_size = tl.where((b_size > 1e-30) & (b_size < float("inf")), b_size, 1.0)
        b_weights = b_weights * (1.0 / b_size)[:, None]
        b_factor = b_factor * b_size
    b_number = tl.arange(0, tile.b_met.shape[0]) + hidden_zero(3)
    b_met, met_inside = places(b_number, tile.halo, tile.steps)
    b_met = row_offsets(b_met, channels, CHANNELS)
    b_own = row_offsets(tile.b_own, channels, CHANNELS)
    b_check = tl.zeros([b_own.shape[0]], tl.float32)
    # With a large halo, warps share its columns: no warp has registers for all of a few rows.
    PIECES: tl.constexpr = 1 if b_met.shape[0] <= 128 else 8
    b_weights = column_pieces(b_weights, PIECES)
    if KEPT == 0:
        b_0, b_1, b_2 = split_in_three(b_weights)
    else:
        b_high, b_low = split(b_weights, p_met.dtype.element_ty, KEPT)
    for start in range(first, end, CHANNELS):
        b_rows = load_rows(p_met + start, b_met, met_inside, start, channels, CHANNELS)
        b_rows = row_pieces(b_rows, PIECES)
        if KEPT == 0:
            b_rows_0, b_rows_1, b_rows_2 = split_in_three(b_rows)
            acc = tl.dot(b_1, b_rows_1)  # the smallest first
            acc = tl.dot(b_2, b_rows_0, acc)
            acc = tl.dot(b_0, b_rows_2, acc)
            acc = tl.dot(b_1, b_rows_0, acc)
            acc = tl.dot(b_0, b_rows_1, acc)
            acc = tl.dot(b_0, b_rows_0, acc)
        else:
            acc = tl.dot(b_low, b_rows)
            acc = tl.dot(b_high, b_rows, acc)
        acc = acc if PIECES == 1 else tl.sum(acc, axis=0)
        b_check += tl.sum(acc * 0.0, axis=1)
        valid = tile.own_inside[:, None] & (start + tl.arange(0, CHANNELS) < channels)[None, :]
        b_out = (acc * b_factor[:, None]).to(p_out.dtype.element_ty)
        tl.store(p_out + start + b_own, b_out, mask=valid)
    bad = tile.own_inside & (b_check != 0.0)
    return tl.sum(bad.to(tl.int32), axis=0)


@triton.jit
def store_exact_sums(b_weights, b_factor, p_met, p_out, part, tile, CHANNELS: tl.constexpr):
    """The same position by position, each added only to those whose window has it."""
    first, end, channels = part
    b_corner = corners(tile)
    b_number = tl.arange(0, b_weights.shape[1])
    b_own = row_offsets(tile.b_own, channels, CHANNELS)
    for start in range(first, end, CHANNELS):
        b_channel = start + tl.arange(0, CHANNELS)
        acc = tl.zeros([b_weights.shape[0], CHANNELS], tl.float32)
        for k in range(tile.halo[1]):
            b_weight = tl.sum(tl.where((b_number == k)[None, :], b_weights, 0.0), axis=1)
            position, inside = places(k, tile.halo, tile.steps)
            p_row = p_met + tl.cast(position, tl.int64) * channels + b_channel
            b_row = tl.load(p_row, mask=inside & (b_channel < channels), other=0.0).to(tl.float32)
            seen = sees(b_corner, halo_cells(k, tile), tile)
            acc += tl.where(seen[:, None], b_weight[:, None] * b_row[None, :], 0.0)
        valid = tile.own_inside[:, None] & (b_channel < channels)[None, :]
        b_out = (acc * b_factor[:, None]).to(p_out.dtype.element_ty)
        tl.store(p_out + start + b_own, b_out, mask=valid)


@triton.jit
def channels_of(part, parts, channels, CHANNELS: tl.constexpr):
    """First channel, end and count, where `parts` programs share the channels."""
    share = tl.cdiv(tl.cdiv(channels, CHANNELS), parts) * CHANNELS
    return part * share, tl.minimum((part + 1) * share, channels), channels


@triton.jit
def window_softmax(acc, scale, tile, mask_border):
    """exp(score - largest) [OWN, MET], zero outside the window; largest scores in powers of two and
    sums [OWN]."""
    seen = windows(tile, mask_border != 0, hidden_zero(2))
    b_scores = tl.where(seen, acc * (scale * LOG2_E), float("-inf"))
    b_largest = tl.max(b_scores, axis=1)
    b_weights = tl.exp2(b_scores - b_largest[:, None])
    return b_weights, b_largest, tl.sum(b_weights, axis=1)
