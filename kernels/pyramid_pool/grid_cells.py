"""First half of pyramid_pool's forward: one pass over the map, from pixels to segment cells."""

from __future__ import annotations

from itertools import product

import torch
import triton
import triton.language as tl

from .._launch import TRITON_DTYPES, AotCase, Launch, run
from .._multiples import FACTORS, known_factor, known_multiple
from .segments import (
    AOT_SIZES,
    TILE,
    axis_edges,
    edge_capacity,
    edge_ranks,
    segment_begin,
    segment_begins,
    segments_of,
)

LOWEST_KEY = tl.constexpr(-(2**63))
COLUMN_CLASSES = (64, 128, TILE)


@triton.jit
def max_keys(b_x, b_pixel, USE_MAX: tl.constexpr):
    """Values as what is reduced: float32 for sums, for maxima 64-bit keys of value and pixel.

    The order of keys is PyTorch's choice of a maximum: larger values first, NaN before everything;
    among equal values the first pixel, among NaNs the last.
    """
    if USE_MAX:
        value = b_x.to(tl.float32) + 0.0  # -0 becomes 0: they are equal
        bits = value.to(tl.int32, bitcast=True)
        ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
        is_nan = value != value
        ordered = tl.where(is_nan, 0x7FFFFFFF, ordered)
        tie = tl.where(is_nan, b_pixel, 0x7FFFFFFF - b_pixel)
        keys = (ordered.to(tl.int64) << 32) | tie.to(tl.int64)
    else:
        keys = b_x.to(tl.float32)
    return keys


@triton.jit
def no_keys(ROWS: tl.constexpr, COLUMNS: tl.constexpr, USE_MAX: tl.constexpr):
    """What reducing nothing gives."""
    if USE_MAX:
        keys = tl.full([ROWS, COLUMNS], LOWEST_KEY, dtype=tl.int64)
    else:
        keys = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    return keys


@triton.jit
def add_run(a, a_segment, b, b_segment):
    return tl.where(a_segment == b_segment, a + b, b), b_segment


@triton.jit
def max_run(a, a_segment, b, b_segment):
    return tl.where(a_segment == b_segment, tl.maximum(a, b), b), b_segment


@triton.jit(do_not_specialize=["lines", "height", "width", "row_segments", "col_segments"])
def cells_kernel(
    p_x,
    p_cells,
    lines,
    height,
    width,
    row_segments,
    col_segments,
    SIZES: tl.constexpr,
    EDGES: tl.constexpr,
    LINES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILE: tl.constexpr,
    USE_MAX: tl.constexpr,
    INNER: tl.constexpr,
    MULTIPLE: tl.constexpr,
):
    """cell[r, c] = sum, or maximal key, of the pixels in row segment r and column segment c.

    A line is a plane, or with INNER one channel of one batch item; float32 cells or int64 keys.
    p_x [lines, height, width], or with INNER [B, height, width, lines]; p_cells
    [B, row_segments, col_segments, lines].
    Grid: B * row_segments * ceil(width / COLUMNS) * ceil(lines / LINES), B = 1 without INNER; one
    program owns COLUMNS columns of one row segment of LINES lines: it reduces rows first, then the
    column segments of the single row left, in a segmented scan. TILE = COLUMNS on maps of several
    tiles, else 0. Reads x once and writes 4 or 8 bytes a cell.
    """
    blocks = tl.cdiv(lines, LINES)
    tiles = tl.cdiv(width, COLUMNS)
    tile = (tl.program_id(0) // blocks) % tiles
    row_segment = (tl.program_id(0) // (blocks * tiles)) % row_segments
    batch = (tl.program_id(0) // (blocks * tiles * row_segments)).to(tl.int64)
    row_edges = axis_edges(height, SIZES, EDGES)
    row_ranks = edge_ranks(row_edges)
    begin = segment_begin(row_segment, row_segments, height, row_edges, row_ranks)
    end = segment_begin(row_segment + 1, row_segments, height, row_edges, row_ranks)
    b_line = (tl.program_id(0) % blocks) * LINES + tl.arange(0, LINES)
    b_step = tl.arange(0, COLUMNS)
    b_column = tile * COLUMNS + b_step
    if INNER:
        lines = known_multiple(lines, MULTIPLE)
        p_tile = p_x + batch * height * width * lines
        p_tile += b_column.to(tl.int64)[None, :] * lines + b_line[:, None]
        row_stride = width.to(tl.int64) * lines
    else:
        width = known_multiple(width, MULTIPLE)
        p_tile = p_x + b_line.to(tl.int64)[:, None] * height * width + b_column[None, :]
        row_stride = width.to(tl.int64)
    in_lines = (b_line < lines)[:, None]
    inside = in_lines & (b_column < width)[None, :]

    acc = no_keys(LINES, COLUMNS, USE_MAX)
    for start in range(begin, end, ROWS):
        for step in tl.static_range(ROWS):
            row = start + step
            mask = inside & (row < end)
            b_x = tl.load(p_tile + row * row_stride, mask=mask, other=0.0)  # [LINES, COLUMNS]
            keys = max_keys(b_x, (row * width + b_column)[None, :], USE_MAX)
            if USE_MAX:
                acc = tl.maximum(acc, tl.where(mask, keys, LOWEST_KEY))
            else:
                acc += keys

    col_edges = axis_edges(width, SIZES, EDGES, TILE)
    b_segment = segments_of(b_column, col_segments, width, col_edges)
    b_next = tl.gather(b_segment, tl.minimum(b_step + 1, COLUMNS - 1), axis=0)
    runs = tl.broadcast_to(b_segment[None, :], [LINES, COLUMNS])
    if USE_MAX:
        acc, _ = tl.associative_scan((acc, runs), 1, max_run)
    else:
        acc, _ = tl.associative_scan((acc, runs), 1, add_run)
    p_row = p_cells + (batch * row_segments + row_segment) * col_segments * lines + b_line[:, None]
    is_last = (b_segment != b_next) | (b_step == COLUMNS - 1) | (b_column == width - 1)
    tl.store(p_row + b_segment.to(tl.int64)[None, :] * lines, acc, mask=inside & is_last[None, :])

    if tile == 0:
        # Columns never reach the empty segments; the last one is not among them.
        col_ranks = edge_ranks(col_edges)
        b_index = tl.arange(0, EDGES)
        b_begin = segment_begins(b_index, col_segments, width, col_edges, col_ranks)
        b_end = segment_begins(b_index + 1, col_segments, width, col_edges, col_ranks)
        is_empty = (b_begin >= b_end) & (b_index < col_segments)
        nothing = no_keys(LINES, EDGES, USE_MAX)
        tl.store(
            p_row + b_index.to(tl.int64)[None, :] * lines,
            nothing,
            mask=in_lines & is_empty[None, :],
        )


def column_class(width: int) -> int:
    """Columns of a tile for maps of a width."""
    return next((columns for columns in COLUMN_CLASSES if width <= columns), COLUMN_CLASSES[-1])


def cells_launch(
    columns: int, wide: bool, sizes: tuple[int, ...], use_max: bool, inner: bool, multiple: int
) -> Launch:
    """The configuration for a tile's columns; `wide` maps take several tiles.

    Eight elements a thread of each row, four rows in flight. Sums of 16-bit channels-inner maps
    take twice the lines, so that 64 bytes of a pixel are read together; keys, and elements that
    are read one by one, leave registers for two rows.
    """
    heavy = use_max or multiple == 1
    long_runs = inner and multiple == 8 and not heavy
    # See Launch: without a bound these spill a few registers.
    registers = 168 if inner and (columns == TILE or not long_runs) else None
    if not inner and use_max and multiple == 1 and columns == TILE:
        registers = 176
    constants = {
        "SIZES": sizes,
        "EDGES": edge_capacity(sizes, wide),
        "LINES": (4096 if long_runs else 2048) // columns,
        "ROWS": 2 if heavy else 4,
        "COLUMNS": columns,
        "TILE": columns if wide else 0,
        "USE_MAX": use_max,
        "INNER": inner,
        "MULTIPLE": multiple,
    }
    return Launch(constants, warps=8, registers=255 if wide else registers)


def reduce_to_cells(
    x: torch.Tensor,
    inner: bool,
    row_segments: int,
    col_segments: int,
    sizes: tuple[int, ...],
    use_max: bool,
) -> torch.Tensor:
    """Cells of x [B, C, H, W]: [B, rows, columns, C] if inner, else [rows, columns, B * C]."""
    batch, channels, height, width = x.shape
    items, lines = (batch, channels) if inner else (1, batch * channels)
    cells = x.new_empty(
        batch * channels * row_segments * col_segments,
        dtype=torch.int64 if use_max else torch.float32,
    )
    # Keys take more time than single-element loads: no variant of their own for aligned rows.
    multiple = 1 if use_max else known_factor(x, channels if inner else width)
    columns = column_class(width)
    launch = cells_launch(columns, width > columns, sizes, use_max, inner, multiple)
    tiles = triton.cdiv(width, columns)
    run(
        cells_kernel,
        items * row_segments * tiles * triton.cdiv(lines, launch.constants["LINES"]),
        x,
        cells,
        lines,
        height,
        width,
        row_segments,
        col_segments,
        launch=launch,
    )
    return cells


def cell_cases() -> list[AotCase]:
    """Every compilation that `reduce_to_cells` can ask for, for the pyramids of AOT_SIZES."""
    flags = (False, True)
    cases = []
    for dtype, use_max in product(TRITON_DTYPES.values(), flags):
        pointers = {"p_x": dtype, "p_cells": "i64" if use_max else "fp32"}
        shapes = [(columns, False) for columns in COLUMN_CLASSES] + [(TILE, True)]
        factors = (1,) if use_max else FACTORS[dtype]
        for shape, sizes, inner, multiple in product(shapes, AOT_SIZES, flags, factors):
            launch = cells_launch(*shape, sizes, use_max, inner, multiple)
            cases.append(AotCase(cells_kernel, pointers, launch))
    return cases
