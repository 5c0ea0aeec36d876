"""Which positions a program of local_attention owns, and which window each of them has.

Positions whose rows and columns differ by multiples of the dilation form a dense map of their own,
one a *phase* (row modulo row step, column modulo column step); within it neighbours are adjacent. A
program owns a rectangle of one phase, up to OWN positions, and meets its *halo*: the rectangle
grown by the window, up to MET positions. From queries the halo holds keys, from keys the queries
that see them: windows are odd, so both are the same rectangle.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .._launch import Launch

HALOS = (128, 256)  # positions of a halo; the larger one holds every admitted window
MAX_NEIGHBOURS = HALOS[-1]
MULTIPROCESSORS = 132  # of an H100: fewer programs are split over channels
# Of a float32 number: the bits that a number of half the width keeps. 0: float32 is split in three.
KEPT_BITS = {torch.float32: 0, torch.float16: -(2**13), torch.bfloat16: -(2**16)}
# Sizes and steps vary freely: no variant for values such as 1 or multiples of 16.
UNSPECIALIZED = [
    "height",
    "width",
    "key_channels",
    "value_channels",
    "rows",
    "columns",
    "row_step",
    "column_step",
    "tile_rows",
    "tile_columns",
    "splits",
    "mask_border",
]
GUARD = tl.constexpr(0x40004000)  # a bit above a row and a column of 14 bits each
NOWHERE = tl.constexpr(0x20002000)  # a row and a column in nobody's window


class Owned(NamedTuple):
    """What a program owns: a share of the channels of a tile of an item, and what it meets."""

    first: tl.tensor  # position of the item among those of all items
    positions: tl.tensor  # of all items
    split: tl.tensor  # of `splits` programs that share the channels
    splits: tl.tensor
    b_own: tl.tensor  # [OWN]: positions in the map
    own_inside: tl.tensor  # [OWN]: which of them are there
    b_met: tl.tensor  # [MET]
    met_inside: tl.tensor  # [MET]
    window: tuple  # rows, columns
    tile_columns: tl.tensor
    halo: tuple  # columns, positions, where it begins in the map
    steps: tuple  # of rows and columns, and the map's height and width


@triton.jit
def cell_of(b_number, columns):
    """Rows and columns of numbers below 1024 in a grid of up to 1024 columns."""
    # A division by multiplication: exact for such numbers, and two instructions.
    b_row = (b_number * ((0xFFFFF + columns) // columns)) >> 20
    return b_row, b_number - b_row * columns


@triton.jit
def places(b_number, rectangle, steps):
    """Positions of a rectangle of a phase, and which of them are in the map."""
    columns, count, y, x = rectangle
    row_step, column_step, height, width = steps
    b_row, b_column = cell_of(b_number, columns)
    b_y, b_x = y + b_row * row_step, x + b_column * column_step
    inside = (b_number < count) & (b_y >= 0) & (b_y < height) & (b_x >= 0) & (b_x < width)
    return b_y * width + b_x, inside


@triton.jit
def owned_tile(hidden, cut, OWN: tl.constexpr, MET: tl.constexpr):
    """The Owned of this program in a grid of items * phases * tiles * splits, splits fastest.

    hidden: 0, or a hidden_zero. cut: (height, width), (rows, columns, row step, column step) of the
    window, (rows, columns, splits) of a tile.
    """
    height, width = cut[0]
    rows, columns, row_step, column_step = cut[1]
    tile_rows, tile_columns, splits = cut[2]
    program, tile_columns = tl.program_id(0) + hidden, tile_columns + hidden
    column_tiles = tl.cdiv(tl.cdiv(width, column_step), tile_columns)
    row_tiles = tl.cdiv(tl.cdiv(height, row_step), tile_rows)
    tile = program // splits
    phase = tile // (column_tiles * row_tiles)
    tile = tile % (column_tiles * row_tiles)
    phases = row_step * column_step
    items = tl.num_programs(0) // (splits * column_tiles * row_tiles * phases)
    area = tl.cast(height * width, tl.int64)
    first = phase // phases * area
    phase = phase % phases
    y = phase // column_step + tile // column_tiles * tile_rows * row_step
    x = phase % column_step + tile % column_tiles * tile_columns * column_step
    steps = (row_step, column_step, height, width)
    own = (tile_columns, tile_rows * tile_columns, y, x)
    b_own, own_inside = places(tl.arange(0, OWN), own, steps)
    halo_columns = tile_columns + columns - 1
    y -= rows // 2 * row_step
    x -= columns // 2 * column_step
    halo = (halo_columns, (tile_rows + rows - 1) * halo_columns, y, x)
    b_met, met_inside = places(tl.arange(0, MET), halo, steps)
    return Owned(
        first,
        items * area,
        program % splits,
        splits,
        b_own,
        own_inside,
        b_met,
        met_inside,
        (rows, columns),
        tile_columns,
        halo,
        steps,
    )


@triton.jit
def corners(tile):
    """[OWN]: row and column, as one number, of the first corner of each window in the halo."""
    b_row, b_column = cell_of(tl.arange(0, tile.b_own.shape[0]), tile.tile_columns)
    return (b_row << 16) + b_column


@triton.jit
def halo_cells(b_number, tile):
    """Row and column in the halo, as one number, of its positions of given numbers."""
    b_row, b_column = cell_of(b_number, tile.halo[0])
    return (b_row << 16) + b_column


@triton.jit
def sees(b_corner, b_cell, tile):
    """Whether cells lie in the windows of given corners, shapes broadcast.

    Row and column are compared at once: a difference takes the guard bit above a field where it is
    negative.
    """
    rows, columns = tile.window
    b_last = b_corner + (((rows - 1) << 16) + columns - 1)
    return (((b_cell + GUARD) - b_corner) & ((b_last + GUARD) - b_cell) & GUARD) == GUARD


@triton.jit
def windows(tile, only_inside, hidden):
    """[OWN, MET]: whether a halo's position is in a window; if `only_inside`, and in the map.

    hidden: a hidden_zero. Cells that are kept for later take as many registers as scores.
    """
    b_cell = halo_cells(tl.arange(0, tile.b_met.shape[0]) + hidden, tile)
    if only_inside:
        b_cell = tl.where(tile.met_inside, b_cell, NOWHERE)
    return sees(corners(tile)[:, None], b_cell[None, :], tile)


@dataclass(frozen=True)
class Grid:
    """How one call is cut: the rectangle that a program owns, the size of its halo, programs."""

    rows: int
    columns: int
    met: int
    tiles: int  # of an item

    def splits(self, batch: int, blocks: int) -> int:
        """Programs that share the channels of a tile, when there are too few tiles."""
        return max(1, min(blocks, triton.cdiv(MULTIPROCESSORS, max(1, batch * self.tiles))))


@functools.lru_cache(maxsize=256)
def grid_of(
    dtype: torch.dtype,
    height: int,
    width: int,
    rows: int,
    columns: int,
    row_step: int,
    column_step: int,
) -> Grid:
    """The cut with the least work, which is about the elements of all score tiles."""
    of_rows, of_columns = triton.cdiv(height, row_step), triton.cdiv(width, column_step)
    found: list[tuple[int, int, Grid]] = []
    for met in HALOS:
        own = shape_of(dtype, met).own
        for tile_rows in range(1, min(own, of_rows) + 1):
            most = min(own // tile_rows, met // (tile_rows + rows - 1) - columns + 1, of_columns)
            if most < 1:
                continue
            row_tiles, column_tiles = triton.cdiv(of_rows, tile_rows), triton.cdiv(of_columns, most)
            tile_columns = triton.cdiv(of_columns, column_tiles)  # evenly: the smaller halo
            tiles = row_tiles * column_tiles * row_step * column_step
            halo = (tile_rows + rows - 1) * (tile_columns + columns - 1)
            cut = Grid(tile_rows, tile_columns, met, tiles)
            found.append((tiles * own * met, tiles * halo, cut))
    return min(found, key=lambda each: each[:2])[2]


@dataclass(frozen=True)
class Shape:
    """How a program of one class of inputs works.

    Attributes:
        own: positions of a tile.
        scored: channels of a trip of the products that make scores.
        summed: channels of a trip of the sums over a window.
    """

    own: int
    scored: int
    summed: int
    warps: int
    stages: int


def shape_of(dtype: torch.dtype, met: int) -> Shape:
    """A score tile takes 64 float32 registers a thread, the stages at most 99 KB of shared memory.

    In float32 operands are split in registers, beside the scores: short blocks. With a large halo
    so are weights, and all of a few rows of them would not fit a warp's registers (products.py).
    """
    if dtype == torch.float32:
        return Shape(64, 16, 16, 4, 2) if met == 128 else Shape(16, 16, 16, 8, 2)
    return Shape(64, 32, 64, 4, 3) if met == 128 else Shape(32, 32, 16, 8, 2)


def tile_launch(dtype: torch.dtype, met: int, hopper: bool, stages: int | None = None) -> Launch:
    """The launch of a kernel on tiles.

    Args:
        hopper: what is_hopper says. Elsewhere products have the registers of all factors, or of
            sums that come back from memory of their own: twice the threads, and two stages.
        stages: of the loops in float32 on small halos, if not as of the shape.
    """
    shape = shape_of(dtype, met)
    constants = {
        "OWN": shape.own,
        "MET": met,
        "SCORED": shape.scored,
        "SUMMED": shape.summed,
        "MULTIPLE": 16 // dtype.itemsize,
        "KEPT": KEPT_BITS[dtype],
    }
    if met != HALOS[0]:
        return Launch(constants, shape.warps, shape.stages, registers=255)
    warps, most = (shape.warps, shape.stages) if hopper else (8, 2)
    if dtype == torch.float32 and stages:
        most = stages
    return Launch(constants, warps, most, registers=255)


def tile_variants(
    dtype: torch.dtype, stages: Mapping[bool, int | None] = MappingProxyType({})
) -> list[tuple[Launch, tuple[int, ...] | None]]:
    """Every launch of a kernel for one element type, and the compute capabilities that it is for.

    stages: by what is_hopper says.
    """
    found: list[tuple[Launch, tuple[int, ...] | None]] = []
    for met in HALOS:
        on_hopper, elsewhere = (tile_launch(dtype, met, h, stages.get(h)) for h in (True, False))
        if on_hopper == elsewhere:
            found.append((on_hopper, None))
        else:
            found += [(on_hopper, (9,)), (elsewhere, (8, 10, 12))]
    return found


def clipped_steps(height: int, width: int, dilation: list[int]) -> tuple[int, int]:
    """Dilations, as far as they matter: beyond the map every neighbour is outside."""
    return min(dilation[0], height), min(dilation[1], width)
