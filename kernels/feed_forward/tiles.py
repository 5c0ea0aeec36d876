"""Tiles of feed_forward: a program's scratch, the hidden map of a tile, its depthwise convolution.

A tile is 4 rows of 16 positions; its halo, 6 rows of 18, is computed again by the tiles around it.
Triton cannot shift a block between threads, so what threads need of each other goes through scratch
of the program's own, channels inner, which stays in the caches: the tile's part of x once a tile,
and a block of hidden channels at a time.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .._launch import HOPPER, INTERPRETED, TRITON_DTYPES, Launch, is_hopper
from .._multiples import FACTORS
from .._products import dot

ROWS, COLUMNS = tl.constexpr(4), tl.constexpr(16)
OWN = tl.constexpr(64)  # positions of a tile
HALO_COLUMNS = tl.constexpr(18)
CELLS = tl.constexpr(108)  # of a halo
HALO = tl.constexpr(128)  # the same, as a power of two
SIZES = ["channels", "hidden", "outputs", "height", "width", "biased"]
# Triton's interpreter takes as long for a large block as for a small one.
FOR_THREADS = not INTERPRETED
INTERPRETED_HIDDEN = 64
PROGRAMS = 2 * 132  # at most: two for each multiprocessor of an H100


class Tile(NamedTuple):
    """What a program owns of a map: ROWS rows of COLUMNS positions of an item."""

    item: tl.tensor
    top: tl.tensor
    left: tl.tensor
    height: tl.tensor  # of the map
    width: tl.tensor


@triton.jit
def tile_at(number, height, width):
    """The Tile of a number: tiles go along the rows, then down, then through the items."""
    across, down = tl.cdiv(width, COLUMNS), tl.cdiv(height, ROWS)
    top = number // across % down * ROWS
    left = number % across * COLUMNS
    return Tile((number // (across * down)).to(tl.int64), top, left, height, width)


@triton.jit
def own_pixels(tile):
    """The tile's pixels [OWN], and which of them are in the map."""
    b_number = tl.arange(0, OWN)
    b_row, b_column = tile.top + b_number // COLUMNS, tile.left + b_number % COLUMNS
    in_map = (b_row < tile.height) & (b_column < tile.width)
    return b_row * tile.width + b_column, in_map


@triton.jit
def halo_pixels(tile, b_cell):
    """Pixels of cells [HALO] of the tile's halo, and which of them are in the map."""
    b_row = tile.top - 1 + b_cell // HALO_COLUMNS
    b_column = tile.left - 1 + b_cell % HALO_COLUMNS
    in_rows = (b_cell < CELLS) & (b_row >= 0) & (b_row < tile.height)
    in_map = in_rows & (b_column >= 0) & (b_column < tile.width)
    return b_row * tile.width + b_column, in_map


@triton.jit
def load_pixels(p_item, b_pixel, in_pixels, b_channel, channels, area, INNER: tl.constexpr):
    """[positions, channels] of an item in either layout, zero where there is nothing."""
    in_channels = b_channel < channels
    if INNER:
        p_rows = p_item + (b_pixel[:, None] * channels + b_channel[None, :])
        b_map = tl.load(p_rows, mask=in_pixels[:, None] & in_channels[None, :], other=0.0)
    else:
        p_planes = p_item + (b_channel[:, None] * area + b_pixel[None, :])
        b_planes = tl.load(p_planes, mask=in_channels[:, None] & in_pixels[None, :], other=0.0)
        b_map = tl.trans(b_planes)
    return b_map


@triton.jit
def store_pixels(p_item, b_map, b_pixel, in_pixels, b_channel, channels, area, INNER: tl.constexpr):
    """Stores [positions, channels] in an item in either layout."""
    b_map = b_map.to(p_item.dtype.element_ty)
    in_channels = b_channel < channels
    if INNER:
        p_rows = p_item + (b_pixel[:, None] * channels + b_channel[None, :])
        tl.store(p_rows, b_map, mask=in_pixels[:, None] & in_channels[None, :])
    else:
        p_planes = p_item + (b_channel[:, None] * area + b_pixel[None, :])
        tl.store(p_planes, tl.trans(b_map), mask=in_channels[:, None] & in_pixels[None, :])


@triton.jit
def begin_tile(
    p_x,
    p_copy,
    tile,
    channels,
    padded,
    area,
    HIDDEN: tl.constexpr,
    CHUNK: tl.constexpr,
    INNER: tl.constexpr,
):
    """Copies x of the halo to scratch [HALO, padded], zero outside the map and the channels.

    Behind it are the two areas [HALO, HIDDEN] for the hidden map: zeros outside the map.
    """
    b_cell = tl.arange(0, HALO)
    b_pixel, in_map = halo_pixels(tile, b_cell)
    for start in range(0, padded, CHUNK):
        b_channel = start + tl.arange(0, CHUNK)
        b_x = load_pixels(p_x, b_pixel, in_map, b_channel, channels, area, INNER)
        tl.store(p_copy + (b_cell[:, None] * padded + b_channel[None, :]), b_x)
    p_cells = p_copy + HALO * padded + (b_cell[:, None] * HIDDEN + tl.arange(0, HIDDEN)[None, :])
    b_zero = tl.zeros([HALO, HIDDEN], p_copy.dtype.element_ty)
    for area_number in tl.static_range(2):
        p_area = p_cells + area_number * HALO * HIDDEN
        tl.store(p_area, b_zero, mask=(in_map == 0)[:, None])


@triton.jit
def load_matrix(p_matrix, b_row, b_column, rows, columns):
    """[b_row, b_column] of a matrix [rows, columns], zero beyond it."""
    mask = (b_row < rows)[:, None] & (b_column < columns)[None, :]
    return tl.load(p_matrix + b_row[:, None] * columns + b_column[None, :], mask=mask, other=0.0)


@triton.jit
def load_vector(p_vector, b_channel, channels, there):
    """A bias [channels], float32; zero unless it is `there`."""
    mask = (b_channel < channels) & (there != 0)
    return tl.load(p_vector + b_channel, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_hidden(
    p_copy, p_expand, b_bias, p_hidden, tile, b_channel, sizes, zero, CHUNK: tl.constexpr, PRECISION
):
    """Stores a block of the hidden map of the halo, where it is in the map: [CELLS, HIDDEN].

    p_copy [HALO, padded]; p_expand [D, C]; sizes: channels, hidden, padded.
    """
    channels, hidden, padded = sizes
    b_cell = tl.arange(0, HALO) + zero
    _b_pixel, in_map = halo_pixels(tile, b_cell)
    acc = tl.zeros([HALO, b_channel.shape[0]], tl.float32) + b_bias[None, :]
    for start in range(0, padded, CHUNK):
        b_chunk = start + tl.arange(0, CHUNK)
        b_x = tl.load(p_copy + b_cell[:, None] * padded + b_chunk[None, :])
        b_expand = load_matrix(p_expand, b_channel, b_chunk, hidden, channels)
        acc = dot(b_x, tl.trans(b_expand), acc, PRECISION)
    b_number = tl.arange(0, b_channel.shape[0])
    p_cells = p_hidden + (b_cell[:, None] * b_channel.shape[0] + b_number[None, :])
    tl.store(p_cells, acc.to(p_hidden.dtype.element_ty), mask=in_map[:, None])


@triton.jit
def zero_sums(ROWS_OF: tl.constexpr, COLUMNS_OF: tl.constexpr, COUNT: tl.constexpr):
    """COUNT sums [ROWS_OF, COLUMNS_OF] of nothing."""
    sums = ()
    for _ in tl.static_range(COUNT):
        sums += (tl.zeros([ROWS_OF, COLUMNS_OF], tl.float32),)
    return sums


@triton.jit
def load_taps(p_taps, b_channel, channels):
    """Nine taps [1, HIDDEN] of channels from [C, 1, 3, 3], row by row."""
    taps = ()
    for i in tl.static_range(9):
        b_tap = tl.load(p_taps + b_channel * 9 + i, mask=b_channel < channels, other=0.0)
        taps += (b_tap.to(tl.float32)[None, :],)
    return taps


@triton.jit
def load_cells(p_block, row, across, HIDDEN: tl.constexpr):
    """Cells [COLUMNS, HIDDEN] of a block [CELLS, HIDDEN], from column `across` of a row on."""
    b_cell = row * HALO_COLUMNS + across + tl.arange(0, COLUMNS)
    p_cells = p_block + (b_cell[:, None] * HIDDEN + tl.arange(0, HIDDEN)[None, :])
    return tl.load(p_cells).to(tl.float32)


@triton.jit
def convolved(p_block, taps, b_bias, HIDDEN: tl.constexpr):
    """The depthwise convolution of a block [CELLS, HIDDEN], and b_bias: [OWN, HIDDEN] float32.

    A row of the halo is loaded three times and adds to the three rows of the tile that it reaches.
    """
    b_start = tl.zeros([COLUMNS, HIDDEN], tl.float32) + b_bias[None, :]
    b_above, b_here = b_start, b_start
    rows = ()
    for row in tl.static_range(ROWS + 2):
        b_left = load_cells(p_block, row, 0, HIDDEN)
        b_middle = load_cells(p_block, row, 1, HIDDEN)
        b_right = load_cells(p_block, row, 2, HIDDEN)
        if row >= 2:
            rows += (b_above + taps[6] * b_left + taps[7] * b_middle + taps[8] * b_right,)
        b_above = b_here + taps[3] * b_left + taps[4] * b_middle + taps[5] * b_right
        b_here = b_start + taps[0] * b_left + taps[1] * b_middle + taps[2] * b_right
    return join_rows(rows, HIDDEN)


@triton.jit
def join_rows(rows, HIDDEN: tl.constexpr):
    """Four rows [COLUMNS, HIDDEN] as [OWN, HIDDEN], row by row; no thread exchanges anything."""
    b_pairs = tl.join(tl.join(rows[0], rows[1]), tl.join(rows[2], rows[3]))
    return tl.reshape(tl.permute(b_pairs, (3, 2, 0, 1)), [OWN, HIDDEN])


class Shape(NamedTuple):
    """How a program of one class of calls works.

    Attributes:
        hidden: hidden channels of a block; a thread owns some of a row, up to 16 bytes.
        piece: channels of a piece of the sums, in which products add to them.
    """

    hidden: int
    piece: int
    warps: int
    registers: int


# By whether products are a Hopper's, whether maps are float32, and the channels of a tile's sums.
# Other products have their factors, or sums on the way to tensor memory, in registers as well.
SHAPES = {
    (True, False): {
        64: Shape(64, 64, 8, 128),
        128: Shape(32, 64, 8, 128),
        256: Shape(64, 64, 16, 128),
    },
    (True, True): {
        64: Shape(16, 64, 8, 128),
        128: Shape(32, 128, 8, 255),
        256: Shape(16, 256, 8, 255),
    },
    (False, False): {
        64: Shape(64, 64, 8, 255),
        128: Shape(32, 64, 8, 255),
        256: Shape(16, 64, 8, 255),
    },
    (False, True): {
        64: Shape(16, 64, 8, 255),
        128: Shape(16, 128, 8, 255),
    },
}
CLASSES = (64, 128, 256)
MOST_CHANNELS = CLASSES[-1]
BLACKWELL = 10  # of data centres
FUSED = (HOPPER, BLACKWELL)  # whose registers hold the sums of the fused backward
OTHERS = (8, BLACKWELL, 12)  # major compute capabilities but Hopper's


def class_of(channels: int) -> int:
    """The class of sums of so many channels."""
    return next(most for most in CLASSES if channels <= most)


def shape_of(dtype: torch.dtype, sums: int, hopper: bool) -> Shape:
    return SHAPES[hopper, dtype == torch.float32][sums]


def products_launch(
    dtype: torch.dtype, sums: int, hopper: bool, inner: bool, multiple: int
) -> Launch:
    """The launch of a kernel whose sums are of a class."""
    # Rows of weights that do not start on 16 bytes take registers.
    shape = shape_of(dtype, sums, hopper and multiple > 1)
    constants = {
        "HIDDEN": shape.hidden if FOR_THREADS else INTERPRETED_HIDDEN,
        "CHUNK": 16 if dtype == torch.float32 else 32,  # channels of x that a product takes
        "SUMS": sums,
        "PIECE": shape.piece,
        "INNER": inner,
        "MULTIPLE": multiple,
        "PRECISION": "tf32x3" if dtype == torch.float32 else "tf32",
    }
    return Launch(constants, warps=shape.warps, registers=shape.registers)


def variants(dtype: torch.dtype) -> list[tuple[Launch, tuple[int, ...] | None]]:
    """Every launch for one element type, and the compute capabilities that it is for."""
    found: list[tuple[Launch, tuple[int, ...] | None]] = []
    for sums, inner in product(CLASSES, (False, True)):
        for multiple in FACTORS[TRITON_DTYPES[dtype]]:
            if multiple == 1:
                if sums < MOST_CHANNELS:
                    found.append((products_launch(dtype, sums, False, inner, 1), None))
                continue
            found.append((products_launch(dtype, sums, True, inner, multiple), (HOPPER,)))
            if dtype != torch.float32 or sums < MOST_CHANNELS:
                found.append((products_launch(dtype, sums, False, inner, multiple), OTHERS))
    return found


def refuse_channels(x: torch.Tensor, most: int, aligned: bool) -> str | None:
    """Why sums of so many channels do not fit, None if they do."""
    if most > MOST_CHANNELS:
        return f"triton: maps of at most {MOST_CHANNELS} channels fit in a program's registers"
    if class_of(most) == MOST_CHANNELS:
        if not aligned:
            return f"triton: more than {CLASSES[1]} channels have to fill 16 bytes each time"
        if x.dtype == torch.float32 and not is_hopper(x):
            return f"triton: float32 sums of more than {CLASSES[1]} channels fit on Hopper alone"
    return None


def tiles_of(x: torch.Tensor) -> int:
    """Tiles of all items of a map."""
    batch, _channels, height, width = x.shape
    return batch * triton.cdiv(width, COLUMNS.value) * triton.cdiv(height, ROWS.value)


class Cut:
    """How a launch cuts a call into tiles, and the tiles' hidden channels into splits."""

    def __init__(self, x: torch.Tensor, hidden: int, launch: Launch) -> None:
        self.block = launch.constants["HIDDEN"]
        blocks = triton.cdiv(hidden, self.block)
        self.tiles = tiles_of(x)
        wanted = min(blocks, triton.cdiv(PROGRAMS, self.tiles))
        self.split_blocks = triton.cdiv(blocks, wanted)
        self.splits = triton.cdiv(blocks, self.split_blocks)
        self.programs = min(PROGRAMS, self.tiles * self.splits)
