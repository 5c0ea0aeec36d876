"""What the kernels of local_attention share: products with, and sums over, a dilated window.

Positions of a map are numbered row by row, n = y * width + x. Number k of a window stands for the
neighbour `sign` * ((k // columns - rows // 2) * row_step, (k % columns - columns // 2) *
column_step) away: sign 1 leads from a query to its keys, -1 from a key to the queries that see it.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .._launch import Launch
from .._multiples import FACTORS, known_factor
from .._tiles import tile_offsets

MAX_NEIGHBOURS = 256
CAPACITIES = (16, 32, 64, 128, 256)  # neighbours of a tile
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


class Window(NamedTuple):
    """The positions that a program owns, and the window around each of them."""

    b_position: tl.tensor  # [POSITIONS]
    in_map: tl.tensor  # [POSITIONS]
    positions: tl.tensor
    height: tl.tensor
    width: tl.tensor
    rows: tl.tensor
    columns: tl.tensor
    row_step: tl.tensor
    column_step: tl.tensor


@triton.jit
def owned_window(
    positions, height, width, rows, columns, row_step, column_step, POSITIONS: tl.constexpr
):
    """The item and the Window of a program of a grid over the positions of all items."""
    tiles = tl.cdiv(positions, POSITIONS)
    b_position = (tl.program_id(0) % tiles) * POSITIONS + tl.arange(0, POSITIONS)
    in_map = b_position < positions
    return (tl.program_id(0) // tiles).to(tl.int64), Window(
        b_position, in_map, positions, height, width, rows, columns, row_step, column_step
    )


@triton.jit
def step_to(window, neighbour, sign):
    """Rows and columns from a position to its neighbour of a number."""
    down = (neighbour // window.columns - window.rows // 2) * window.row_step
    right = (neighbour % window.columns - window.columns // 2) * window.column_step
    return down * sign, right * sign


@triton.jit
def is_inside(window, row, column):
    return (row >= 0) & (row < window.height) & (column >= 0) & (column < window.width)


@triton.jit
def neighbours(window, neighbour, sign):
    """Positions of a neighbour of all positions, and which of them are in the map."""
    down, right = step_to(window, neighbour, sign)
    b_row = window.b_position // window.width + down
    b_column = window.b_position % window.width + right
    seen = window.in_map & is_inside(window, b_row, b_column)
    return window.b_position + down * window.width + right, seen


@triton.jit
def whole_windows(window, sign, NEIGHBOURS: tl.constexpr):
    """[POSITIONS, NEIGHBOURS]: positions of all neighbours, and which of them are in the map;
    [NEIGHBOURS]: which numbers are in the window."""
    b_neighbour = tl.arange(0, NEIGHBOURS)
    down, right = step_to(window, b_neighbour, sign)
    b_row = (window.b_position // window.width)[:, None] + down[None, :]
    b_column = (window.b_position % window.width)[:, None] + right[None, :]
    b_other = window.b_position[:, None] + (down * window.width + right)[None, :]
    in_window = b_neighbour < window.rows * window.columns
    return b_other, is_inside(window, b_row, b_column), in_window


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
def window_products(
    p_own,
    p_other,
    channels,
    window,
    sign,
    NEIGHBOURS: tl.constexpr,
    CHANNELS: tl.constexpr,
    INNER: tl.constexpr,
):
    """[POSITIONS, NEIGHBOURS]: <own[n], other[neighbour of n]>, 0 outside the map and past the
    window."""
    count = window.positions
    b_neighbour = tl.arange(0, NEIGHBOURS)
    products = tl.zeros([window.b_position.shape[0], NEIGHBOURS], tl.float32)
    for k in range(window.rows * window.columns):
        b_other, seen = neighbours(window, k, sign)
        b_sum = tl.zeros([window.b_position.shape[0]], tl.float32)
        for start in range(0, channels, CHANNELS):
            b_own_tile = load_tile(
                p_own, window.b_position, window.in_map, start, channels, count, CHANNELS, INNER
            )
            b_other_tile = load_tile(
                p_other, b_other, seen, start, channels, count, CHANNELS, INNER
            )
            b_sum += tl.sum(b_own_tile * b_other_tile, axis=1)
        # An infinite product times a zero of `own` outside the map must not become a score.
        b_sum = tl.where(seen, b_sum, 0.0)
        products += tl.where((b_neighbour == k)[None, :], b_sum[:, None], 0.0)
    return products


@triton.jit
def store_window_sums(
    b_weights,
    p_other,
    p_out,
    factor,
    channels,
    window,
    sign,
    CHANNELS: tl.constexpr,
    INNER: tl.constexpr,
):
    """out[n] = factor * sum over neighbours of weights[n, neighbour] * other[neighbour of n]."""
    count = window.positions
    b_neighbour = tl.arange(0, b_weights.shape[1])
    for start in range(0, channels, CHANNELS):
        acc = tl.zeros([window.b_position.shape[0], CHANNELS], tl.float32)
        for k in range(window.rows * window.columns):
            b_other, seen = neighbours(window, k, sign)
            b_weight = tl.sum(tl.where((b_neighbour == k)[None, :], b_weights, 0.0), axis=1)
            acc += b_weight[:, None] * load_tile(
                p_other, b_other, seen, start, channels, count, CHANNELS, INNER
            )
        b_channel = start + tl.arange(0, CHANNELS)
        valid = window.in_map[:, None] & (b_channel < channels)[None, :]
        p_tile = p_out + tile_offsets(window.b_position, b_channel, channels, count, INNER)
        tl.store(p_tile, (acc * factor).to(p_out.dtype.element_ty), mask=valid)


@triton.jit
def window_softmax(b_scores, window, mask_border):
    """exp(score - largest) [POSITIONS, NEIGHBOURS], 0 past the window and where the border is
    masked; the largest scores and the sums [POSITIONS].
    """
    _, inside, in_window = whole_windows(window, 1, b_scores.shape[1])
    counts = in_window[None, :] & (inside | (mask_border == 0))
    b_scores = tl.where(counts, b_scores, float("-inf"))
    b_largest = tl.max(b_scores, axis=1)
    b_weights = tl.where(counts, tl.exp(b_scores - b_largest[:, None]), 0.0)
    return b_weights, b_largest, tl.sum(b_weights, axis=1)


def capacity_for(rows: int, columns: int) -> int:
    return next(capacity for capacity in CAPACITIES if capacity >= rows * columns)


def window_launch(capacity: int, inner: bool, multiple: int, backward: bool = False) -> Launch:
    """A tile of 4096 weights, whatever the window, beside two tiles of channels: what fits the
    registers of eight warps. The backward holds weights and their gradients: half as many.
    """
    constants = {
        "POSITIONS": min(64, 2048 // capacity) if backward else min(128, 4096 // capacity),
        "NEIGHBOURS": capacity,
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
        window_launch(capacity, inner, multiple, backward)
        for capacity, inner in product(CAPACITIES, (False, True))
        for multiple in (FACTORS[dtype] if inner else (1,))
    ]
