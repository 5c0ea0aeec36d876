"""What the kernels of local_attention share: products with, and sums over, a dilated window.

Positions of a map are numbered row by row, n = y * width + x. Tap t of a window stands for the
neighbour `sign` * ((t // columns - rows // 2) * row_step, (t % columns - columns // 2) *
column_step) away: sign 1 leads from a query to its keys, -1 from a key to the queries that see it.
"""

from __future__ import annotations

from itertools import product

import torch
import triton
import triton.language as tl

from .._launch import FACTORS, Launch, known_factor

MAX_TAPS = 256
TAPS = (16, 32, 64, 128, 256)  # capacities of a tile
# Sizes and steps vary freely: no variant for values such as 1 or multiples of 16.
UNSPECIALIZED = [
    "positions",
    "width",
    "height",
    "key_channels",
    "value_channels",
    "rows",
    "columns",
    "row_step",
    "column_step",
    "mask_border",
]


@triton.jit
def tap_offsets(tap, rows, columns, row_step, column_step, sign):
    """Rows and columns from a position to its neighbour of a tap."""
    down = (tap // columns - rows // 2) * row_step
    right = (tap % columns - columns // 2) * column_step
    return down * sign, right * sign


@triton.jit
def is_inside(row, column, height, width):
    return (row >= 0) & (row < height) & (column >= 0) & (column < width)


@triton.jit
def load_tile(
    p_map, b_position, mask, start, channels, positions, CHANNELS: tl.constexpr, INNER: tl.constexpr
):
    """[POSITIONS, CHANNELS] of one batch item in float32, zeros where `mask` [POSITIONS] is not."""
    b_channel = start + tl.arange(0, CHANNELS)
    valid = mask[:, None] & (b_channel < channels)[None, :]
    p_tile = p_map + tile_offsets(b_position, b_channel, channels, positions, INNER)
    return tl.load(p_tile, mask=valid, other=0.0).to(tl.float32)


@triton.jit
def tile_offsets(b_position, b_channel, channels, positions, INNER: tl.constexpr):
    if INNER:
        return b_position.to(tl.int64)[:, None] * channels + b_channel[None, :]
    return b_channel.to(tl.int64)[None, :] * positions + b_position[:, None]


@triton.jit
def window_products(
    p_own,
    p_other,
    b_position,
    in_map,
    channels,
    positions,
    height,
    width,
    rows,
    columns,
    row_step,
    column_step,
    sign,
    TAPS: tl.constexpr,
    CHANNELS: tl.constexpr,
    INNER: tl.constexpr,
):
    """[POSITIONS, TAPS]: <own[n], other[neighbour of n]>, 0 outside the map and past the window."""
    b_tap = tl.arange(0, TAPS)
    b_row = b_position // width
    b_column = b_position % width
    products = tl.zeros([b_position.shape[0], TAPS], tl.float32)
    for tap in range(rows * columns):
        down, right = tap_offsets(tap, rows, columns, row_step, column_step, sign)
        seen = in_map & is_inside(b_row + down, b_column + right, height, width)
        b_other = b_position + down * width + right
        b_sum = tl.zeros([b_position.shape[0]], tl.float32)
        for start in range(0, channels, CHANNELS):
            b_own_tile = load_tile(
                p_own, b_position, in_map, start, channels, positions, CHANNELS, INNER
            )
            b_other_tile = load_tile(
                p_other, b_other, seen, start, channels, positions, CHANNELS, INNER
            )
            b_sum += tl.sum(b_own_tile * b_other_tile, axis=1)
        # An infinite product times a zero of `own` outside the map must not become a score.
        b_sum = tl.where(seen, b_sum, 0.0)
        products += tl.where((b_tap == tap)[None, :], b_sum[:, None], 0.0)
    return products


@triton.jit
def store_window_sums(
    b_weights,
    p_other,
    p_out,
    factor,
    b_position,
    in_map,
    channels,
    positions,
    height,
    width,
    rows,
    columns,
    row_step,
    column_step,
    sign,
    TAPS: tl.constexpr,
    CHANNELS: tl.constexpr,
    INNER: tl.constexpr,
):
    """out[n] = factor * sum over taps of weights[n, tap] * other[neighbour of n]."""
    b_tap = tl.arange(0, TAPS)
    b_row = b_position // width
    b_column = b_position % width
    for start in range(0, channels, CHANNELS):
        acc = tl.zeros([b_position.shape[0], CHANNELS], tl.float32)
        for tap in range(rows * columns):
            down, right = tap_offsets(tap, rows, columns, row_step, column_step, sign)
            seen = in_map & is_inside(b_row + down, b_column + right, height, width)
            b_other = b_position + down * width + right
            b_weight = tl.sum(tl.where((b_tap == tap)[None, :], b_weights, 0.0), axis=1)
            acc += b_weight[:, None] * load_tile(
                p_other, b_other, seen, start, channels, positions, CHANNELS, INNER
            )
        b_channel = start + tl.arange(0, CHANNELS)
        valid = in_map[:, None] & (b_channel < channels)[None, :]
        p_tile = p_out + tile_offsets(b_position, b_channel, channels, positions, INNER)
        tl.store(p_tile, (acc * factor).to(p_out.dtype.element_ty), mask=valid)


@triton.jit
def window_softmax(
    b_scores,
    b_position,
    height,
    width,
    rows,
    columns,
    row_step,
    column_step,
    mask_border,
    TAPS: tl.constexpr,
):
    """exp(score - largest) [POSITIONS, TAPS], 0 past the window and where the border is masked;
    the largest scores and the sums [POSITIONS].
    """
    b_tap = tl.arange(0, TAPS)
    down, right = tap_offsets(b_tap, rows, columns, row_step, column_step, 1)
    inside = is_inside(
        (b_position // width)[:, None] + down[None, :],
        (b_position % width)[:, None] + right[None, :],
        height,
        width,
    )
    counts = (b_tap < rows * columns)[None, :] & (inside | (mask_border == 0))
    b_scores = tl.where(counts, b_scores, float("-inf"))
    b_largest = tl.max(b_scores, axis=1)
    b_weights = tl.where(counts, tl.exp(b_scores - b_largest[:, None]), 0.0)
    return b_weights, b_largest, tl.sum(b_weights, axis=1)


def tap_capacity(rows: int, columns: int) -> int:
    return next(taps for taps in TAPS if taps >= rows * columns)


def window_launch(taps: int, inner: bool, multiple: int, backward: bool = False) -> Launch:
    """A tile of 4096 weights, whatever the window, beside two tiles of channels: what fits the
    registers of eight warps. The backward holds weights and their gradients: half as many.
    """
    constants = {
        "POSITIONS": min(64, 2048 // taps) if backward else min(128, 4096 // taps),
        "TAPS": taps,
        "CHANNELS": 32,
        "INNER": inner,
        "MULTIPLE": multiple,
    }
    return Launch(constants, warps=8, registers=255)


def multiple_of(maps: tuple[torch.Tensor, ...], inner: bool) -> int:
    """What is known of the channels' counts, where they are the length of a row in memory."""
    return known_factor(maps[0], *(x.shape[1] for x in maps)) if inner else 1


def window_variants(dtype: str, backward: bool = False) -> list[Launch]:
    """Every launch for one element type."""
    return [
        window_launch(taps, inner, multiple, backward)
        for taps, inner in product(TAPS, (False, True))
        for multiple in (FACTORS[dtype] if inner else (1,))
    ]
