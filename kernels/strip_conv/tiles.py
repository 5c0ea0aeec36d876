"""Columns of maps that walk down their rows: places, parameters, and steps that kernels share.

A program owns POSITIONS neighbouring columns of LANES channels, one element a thread, and a run of
rows. Going down, a thread keeps in registers what a column of taps still needs: results that are
not complete yet (`pushed_down`), or the last rows of a map.

Scratch maps are [B, blocks, rows, columns, LANES] in float32: the channels in blocks of LANES, so
that a step to the next column is known to the compiler. Parameters lie beside them as
[blocks, taps + kernels, LANES] in float32: the taps of all kernels, then their biases, zeros where
there is none. The kernels are the local one, and row and column of every strip; SIDES are theirs:
KH and KW, then R0 and C0, R1 and C1, R2 and C2 of up to three strips, 0 where there is none.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

SIZES = ["batches", "channels", "height", "width", "rows"]  # arguments of every kernel


class Tile(NamedTuple):
    """What a program owns."""

    plane: tl.tensor  # item * blocks + block
    block: tl.tensor
    part: tl.tensor  # number among the tiles of a block of channels
    b_column: tl.tensor  # [POSITIONS, 1]
    b_lane: tl.tensor  # [1, LANES]
    owned: tl.tensor  # [POSITIONS, LANES]: it is in the map
    top: tl.tensor
    bottom: tl.tensor


@triton.jit
def tiles_of(sizes, columns, POSITIONS: tl.constexpr, LANES: tl.constexpr):
    """Tiles of all maps, of `columns` columns."""
    batches, channels, height, _, rows = sizes
    return batches * tl.cdiv(channels, LANES) * tl.cdiv(height, rows) * tl.cdiv(columns, POSITIONS)


@triton.jit
def tile_of(number, sizes, columns, POSITIONS: tl.constexpr, LANES: tl.constexpr):
    """The Tile of a number: neighbours in a row first, then runs of rows, blocks, items."""
    _, channels, height, width, rows = sizes
    across = tl.cdiv(columns, POSITIONS)
    down = tl.cdiv(height, rows)
    blocks = tl.cdiv(channels, LANES)
    plane = number // (across * down)
    block = plane % blocks
    b_column = (number % across * POSITIONS + tl.arange(0, POSITIONS))[:, None]
    b_lane = tl.arange(0, LANES)[None, :]
    owned = (b_column < width) & (block * LANES + b_lane < channels)
    top = number // across % down * rows
    return Tile(
        plane.to(tl.int64),
        block,
        plane // blocks * (across * down) + number % (across * down),
        b_column,
        b_lane,
        owned,
        top,
        tl.minimum(top + rows, height),
    )


@triton.jit
def channels_of(tile):
    """The channels of a tile's lanes [1, LANES]."""
    return tile.block * tile.b_lane.shape[1] + tile.b_lane


@triton.jit
def map_place(tile, sizes, INNER: tl.constexpr):
    """Offsets [1, LANES] of channels in a map [B, C, H, W], beyond its end where there is none, and
    the step to the next column."""
    _, channels, height, width, _ = sizes
    item = tile.plane // tl.cdiv(channels, tile.b_lane.shape[1])
    b_channel = channels_of(tile)
    area = height.to(tl.int64) * width
    if INNER:
        return item * channels * area + b_channel, channels
    return (item * channels + b_channel) * area, 1


@triton.jit
def taps_at(p_parameters, FIRST: tl.constexpr, COUNT: tl.constexpr, TURNED: tl.constexpr, b_lane):
    """COUNT taps from FIRST on, each [1, LANES]; in reverse order if TURNED."""
    lanes: tl.constexpr = b_lane.shape[1]
    taps = ()
    for t in tl.static_range(COUNT):
        k = FIRST + (COUNT - 1 - t if TURNED else t)
        taps = taps + (tl.load(p_parameters + k * lanes + b_lane),)
    return taps


@triton.jit
def window_at(p_row, STEP: tl.constexpr, COUNT: tl.constexpr):
    """COUNT neighbours in a row, STEP apart, each a tile."""
    window = ()
    for t in tl.static_range(COUNT):
        window = window + (tl.load(p_row + t * STEP),)
    return window


@triton.jit
def weighed(base, values, AT: tl.constexpr, taps, FIRST: tl.constexpr, COUNT: tl.constexpr):
    """base + sum over t < COUNT of taps[FIRST + t] * values[AT + t]: sums of eight, which err less
    than one in a row."""
    total = base
    for t in tl.static_range(min(8, COUNT)):
        total += taps[FIRST + t] * values[AT + t].to(tl.float32)
    for chunk in tl.static_range(8, COUNT, 8):
        part = taps[FIRST + chunk] * values[AT + chunk].to(tl.float32)
        for t in tl.static_range(chunk + 1, min(chunk + 8, COUNT)):
            part += taps[FIRST + t] * values[AT + t].to(tl.float32)
        total += part
    return total


@triton.jit
def pushed_down(sums, taps, COUNT: tl.constexpr, REACH: tl.constexpr, value):
    """The sums of 2 * REACH + 1 rows with what `value`, of the middle one, adds to them.

    sums[i] is of REACH - i rows above: tap COUNT // 2 + REACH - i of the column meets `value`.
    """
    new = ()
    for i in tl.static_range(2 * REACH + 1):
        if (i - REACH) * (i - REACH) <= (COUNT // 2) * (COUNT // 2):
            new = new + (sums[i] + taps[COUNT // 2 + REACH - i] * value,)
        else:
            new = new + (sums[i],)
    return new


@triton.jit
def zeros(COUNT: tl.constexpr, POSITIONS: tl.constexpr, LANES: tl.constexpr):
    """COUNT tiles of zeros."""
    tiles = ()
    for _ in tl.static_range(COUNT):
        tiles = tiles + (tl.zeros([POSITIONS, LANES], tl.float32),)
    return tiles


@triton.jit
def store_sums(p_sums, first, sums, COUNT: tl.constexpr, tile, channels, parts):
    """Sums of a tile as parts of p_sums [., parts, C]: sums[t] in row first + t, for t < COUNT.

    Every column of channels-last maps is a part of its own; others are summed up.
    """
    LANES: tl.constexpr = tile.b_lane.shape[1]
    POSITIONS: tl.constexpr = tile.b_column.shape[0]
    b_channel = channels_of(tile)
    for t in tl.static_range(COUNT):
        p_row = p_sums + ((first + t) * parts).to(tl.int64) * channels
        if LANES > 1:
            b_part = tile.part * POSITIONS + tl.arange(0, POSITIONS)[:, None]
            p_tile = p_row + b_part.to(tl.int64) * channels + b_channel
            tl.store(p_tile, sums[t], mask=(b_channel < channels) & (b_part >= 0))
        else:
            p_tile = p_row + tile.part.to(tl.int64) * channels + tl.reshape(b_channel, [LANES])
            tl.store(p_tile, tl.sum(sums[t], axis=0))
