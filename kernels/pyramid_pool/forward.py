"""Triton forward of pyramid_pool: adaptive pooling of every level in one pass over the map.

Source: Zhu et al., Asymmetric Non-local Neural Networks for Semantic Segmentation (ICCV 2019),
section 3.2, figure 4 (spatial pyramid pooling as sampling).

Two kernels: the first (grid_cells.py) reads the map once and reduces it to cells, one for each pair
of a row and a column segment; the second combines the cells of a bin. With sizes (1, 3, 6, 8) there
are at most 29 x 29 cells a plane, and 15 x 15 where the sides are multiples of 24.
"""

from __future__ import annotations

from itertools import product

import torch
import triton
import triton.language as tl

from ..._layout import is_channels_inner
from .._launch import TRITON_DTYPES, AotCase, Launch, on_device, refuse_tensor, run
from .._multiples import known_multiple
from .grid_cells import LOWEST_KEY, cell_cases, no_keys, reduce_to_cells
from .segments import (
    AOT_SIZES,
    MAX_BINS,
    MAX_SIDE,
    TILE,
    axis_edges,
    bin_begin,
    bin_end,
    count_segments,
    edge_capacity,
    max_width,
    segment_of,
)


@triton.jit(
    do_not_specialize=[
        "lines",
        "height",
        "width",
        "row_segments",
        "col_segments",
        "anchors",
    ]
)
def combine_kernel(
    p_cells,
    p_out,
    p_argmax,
    lines,
    height,
    width,
    row_segments,
    col_segments,
    anchors,
    SIZES: tl.constexpr,
    EDGES: tl.constexpr,
    LINES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILE: tl.constexpr,
    USE_MAX: tl.constexpr,
    MULTIPLE: tl.constexpr,
):
    """out = sum of a bin's cells / its pixels, or the maximum that its largest key stands for.

    p_cells as cells_kernel writes them, lines side by side. p_out [B, lines, anchors] (B = 1 of
    contiguous maps); p_argmax likewise, int32 h * width + w, unused for means.
    Grid: B * anchors * ceil(lines / LINES); one program owns a bin for LINES lines: it reduces its
    cells, ROWS rows and COLUMNS columns at a time. Reads every cell once a level (twice where bins
    overlap), out of L2.
    """
    blocks = tl.cdiv(lines, LINES)
    anchor = (tl.program_id(0) // blocks) % anchors
    batch = (tl.program_id(0) // (blocks * anchors)).to(tl.int64)
    n = 1
    index = 0
    bins_before = 0
    for level in tl.static_range(len(SIZES)):
        is_later = anchor >= bins_before
        n = tl.where(is_later, SIZES[level], n)
        index = tl.where(is_later, anchor - bins_before, index)
        bins_before += SIZES[level] * SIZES[level]
    row_bin = index // n
    column = index - row_bin * n
    row_begin = bin_begin(row_bin, n, height)
    row_end = bin_end(row_bin, n, height)
    row_edges = axis_edges(height, SIZES, EDGES)
    first = segment_of(row_begin, row_segments, height, row_edges)
    last = segment_of(row_end - 1, row_segments, height, row_edges)
    col_begin = bin_begin(column, n, width)
    col_end = bin_end(column, n, width)
    col_edges = axis_edges(width, SIZES, EDGES, TILE)
    col_first = segment_of(col_begin, col_segments, width, col_edges)
    col_last = segment_of(col_end - 1, col_segments, width, col_edges)

    b_line = (tl.program_id(0) % blocks) * LINES + tl.arange(0, LINES)
    b_row = tl.arange(0, ROWS)[:, None]
    step = known_multiple(lines, MULTIPLE)
    in_lines = b_line < step
    p_tile = p_cells + batch * row_segments * col_segments * step + b_line[None, :]
    acc = no_keys(ROWS, LINES, USE_MAX)
    for start in range(first, last + 1, ROWS):
        in_bin = start + b_row <= last
        p_rows = p_tile + ((start + b_row) * col_segments).to(tl.int64) * step
        for segment in range(col_first, col_last + 1, COLUMNS):
            for more in tl.static_range(COLUMNS):
                at = col_first * 0 + segment + more  # a tensor for the interpreter too
                mask = in_bin & in_lines[None, :] & (at <= col_last)
                p_cell = p_rows + at.to(tl.int64) * step  # [ROWS, LINES]
                if USE_MAX:
                    acc = tl.maximum(acc, tl.load(p_cell, mask=mask, other=LOWEST_KEY))
                else:
                    acc += tl.load(p_cell, mask=mask, other=0.0)

    b_target = (batch * lines + b_line) * anchors + anchor
    if USE_MAX:
        key = tl.max(acc, axis=0)
        ordered = (key >> 32).to(tl.int32)
        tie = (key & 0x7FFFFFFF).to(tl.int32)
        argmax = tl.where(ordered == 0x7FFFFFFF, tie, 0x7FFFFFFF - tie)
        tl.store(p_argmax + b_target, argmax, mask=in_lines)
        bits = ordered ^ ((ordered >> 31) & 0x7FFFFFFF)
        out = bits.to(tl.float32, bitcast=True)
    else:
        count = (row_end - row_begin).to(tl.float32) * (col_end - col_begin).to(tl.float32)
        out = tl.sum(acc, axis=0) / count
    tl.store(p_out + b_target, out.to(p_out.dtype.element_ty), mask=in_lines)


def combine_launch(sizes: tuple[int, ...], wide: bool, use_max: bool, multiple: int) -> Launch:
    """A row of cells a warp, 16 bytes of it a thread, four columns in flight."""
    constants = {
        "SIZES": sizes,
        "EDGES": edge_capacity(sizes, wide),
        "LINES": 64 if use_max else 128,
        "ROWS": 4,
        "COLUMNS": 4,
        "TILE": TILE if wide else 0,
        "USE_MAX": use_max,
        "MULTIPLE": multiple,
    }
    return Launch(constants, warps=4)


def forward(x: torch.Tensor, sizes: list[int], use_max: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """All levels of x [B, C, H, W]: out [B, C, S]; argmax int32 [B, C, S], or [0] for means."""
    batch, channels, height, width = x.shape
    sizes = tuple(sizes)
    anchors = sum(n * n for n in sizes)
    inner = is_channels_inner(x)
    row_segments = count_segments(height, sizes)
    col_segments = count_segments(width, sizes, tiled=True)
    out = x.new_empty(batch, channels, anchors)
    argmax = x.new_empty(out.shape if use_max else (0,), dtype=torch.int32)
    with on_device(x) as (x,):
        cells = reduce_to_cells(x, inner, row_segments, col_segments, sizes, use_max)
        items, lines = (batch, channels) if inner else (1, batch * channels)
        launch = combine_launch(sizes, width > TILE, use_max, 4 if lines % 4 == 0 else 1)
        run(
            combine_kernel,
            items * anchors * triton.cdiv(lines, launch.constants["LINES"]),
            cells,
            out,
            argmax if use_max else cells,
            lines,
            height,
            width,
            row_segments,
            col_segments,
            anchors,
            launch=launch,
        )
    return out, argmax


def refuse(x: torch.Tensor, sizes: list[int], use_max: bool) -> str | None:
    """The reason why these kernels cannot run an input, None if they can."""
    batch, channels, height, width = x.shape
    if sum(sizes) > MAX_BINS:
        return f"triton: {sum(sizes)} bins along an axis: the kernels hold up to {MAX_BINS}"
    if height * width >= 2**31 or max(height, width) >= MAX_SIDE:
        return "triton: H*W must be below 2**31 and both below 2**24"
    if batch * channels >= 2**24:
        return f"triton: {batch * channels} planes (B*C): expected fewer than 2**24"
    if width > max_width(tuple(sizes)):
        return f"triton: W={width}: with these sizes up to {max_width(tuple(sizes))}"
    return refuse_tensor(x)


def aot_cases() -> list[AotCase]:
    """Every compilation that `forward` can ask for, for the pyramids of AOT_SIZES."""
    cases = cell_cases()
    flags = (False, True)
    for dtype, sizes, wide, use_max, multiple in product(
        TRITON_DTYPES.values(), AOT_SIZES, flags, flags, (1, 4)
    ):
        pointers = {
            "p_cells": "i64" if use_max else "fp32",
            "p_out": dtype,
            "p_argmax": "i32" if use_max else "fp32",
        }
        launch = combine_launch(sizes, wide, use_max, multiple)
        cases.append(AotCase(combine_kernel, pointers, launch))
    return cases
