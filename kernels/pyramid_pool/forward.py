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
    segment_capacity,
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
        "row_bins",
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
    row_bins,
    SIZES: tl.constexpr,
    EDGES: tl.constexpr,
    LINES: tl.constexpr,
    ROWS: tl.constexpr,
    SEGMENTS: tl.constexpr,
    TILE: tl.constexpr,
    USE_MAX: tl.constexpr,
    INNER: tl.constexpr,
):
    """out = sum of a bin's cells / its pixels, or the maximum that its largest key stands for.

    p_cells as cells_kernel writes them. p_out [B, lines, anchors] (B = 1 without INNER); p_argmax
    likewise, int32 h * width + w, unused for means.
    Grid: B * row_bins * ceil(lines / LINES), row_bins = sum of SIZES; one program owns one row of
    bins of one level for LINES lines: it reduces the rows of cells, ROWS at a time, then the column
    segments of each bin. Reads every cell once a level (twice where bins overlap), out of L2.
    """
    blocks = tl.cdiv(lines, LINES)
    row_bin = (tl.program_id(0) // blocks) % row_bins
    batch = (tl.program_id(0) // (blocks * row_bins)).to(tl.int64)
    n = 1
    index = 0
    offset = 0
    rows_before = 0
    bins_before = 0
    for level in tl.static_range(len(SIZES)):
        is_later = row_bin >= rows_before
        n = tl.where(is_later, SIZES[level], n)
        index = tl.where(is_later, row_bin - rows_before, index)
        offset = tl.where(is_later, bins_before, offset)
        rows_before += SIZES[level]
        bins_before += SIZES[level] * SIZES[level]
    row_begin = bin_begin(index, n, height)
    row_end = bin_end(index, n, height)
    row_edges = axis_edges(height, SIZES, EDGES)
    first = segment_of(row_begin, row_segments, height, row_edges)
    last = segment_of(row_end - 1, row_segments, height, row_edges)

    b_line = (tl.program_id(0) % blocks) * LINES + tl.arange(0, LINES)
    b_step = tl.arange(0, ROWS)
    b_segment = tl.arange(0, SEGMENTS)
    in_lines = b_line < lines
    in_tile = in_lines[None, :, None] & (b_segment < col_segments)[None, None, :]
    if INNER:
        p_cells += batch * row_segments * col_segments * lines
        p_tile = p_cells + b_segment[None, None, :] * lines + b_line[None, :, None]
        row_stride = col_segments * lines
    else:
        b_plane = b_line.to(tl.int64)[None, :, None] * row_segments * col_segments
        p_tile = p_cells + b_plane + b_segment[None, None, :]
        row_stride = col_segments
    acc = no_keys(LINES, SEGMENTS, USE_MAX)
    for start in range(first, last + 1, ROWS):
        b_row = start + b_step
        mask = in_tile & (b_row <= last)[:, None, None]
        p_rows = p_tile + b_row[:, None, None] * row_stride  # [ROWS, LINES, SEGMENTS]
        if USE_MAX:
            acc = tl.maximum(acc, tl.max(tl.load(p_rows, mask=mask, other=LOWEST_KEY), axis=0))
        else:
            acc += tl.sum(tl.load(p_rows, mask=mask, other=0.0), axis=0)

    col_edges = axis_edges(width, SIZES, EDGES, TILE)
    b_target = (batch * lines + b_line) * anchors + offset + index * n
    for column in range(n):
        col_begin = bin_begin(column, n, width)
        col_end = bin_end(column, n, width)
        col_first = segment_of(col_begin, col_segments, width, col_edges)
        col_last = segment_of(col_end - 1, col_segments, width, col_edges)
        in_bin = ((b_segment >= col_first) & (b_segment <= col_last))[None, :]
        if USE_MAX:
            key = tl.max(tl.where(in_bin, acc, LOWEST_KEY), axis=1)
            ordered = (key >> 32).to(tl.int32)
            tie = (key & 0x7FFFFFFF).to(tl.int32)
            argmax = tl.where(ordered == 0x7FFFFFFF, tie, 0x7FFFFFFF - tie)
            tl.store(p_argmax + b_target + column, argmax, mask=in_lines)
            bits = ordered ^ ((ordered >> 31) & 0x7FFFFFFF)
            out = bits.to(tl.float32, bitcast=True)
        else:
            count = (row_end - row_begin).to(tl.float32) * (col_end - col_begin).to(tl.float32)
            out = tl.sum(tl.where(in_bin, acc, 0.0), axis=1) / count
        tl.store(p_out + b_target + column, out.to(p_out.dtype.element_ty), mask=in_lines)


def combine_launch(sizes: tuple[int, ...], wide: bool, use_max: bool, inner: bool) -> Launch:
    """Up to eight rows of cells in flight: most row bins have fewer, that of level 1 has all."""
    segments = segment_capacity(sizes, wide)
    constants = {
        "SIZES": sizes,
        "EDGES": edge_capacity(sizes, wide),
        "LINES": max(1, 512 // segments),
        "ROWS": 4 if use_max else 8,
        "SEGMENTS": segments,
        "TILE": TILE if wide else 0,
        "USE_MAX": use_max,
        "INNER": inner,
    }
    return Launch(constants, warps=8, registers=255)


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
        launch = combine_launch(sizes, width > TILE, use_max, inner)
        items, lines = (batch, channels) if inner else (1, batch * channels)
        run(
            combine_kernel,
            items * sum(sizes) * triton.cdiv(lines, launch.constants["LINES"]),
            cells,
            out,
            argmax if use_max else cells,
            lines,
            height,
            width,
            row_segments,
            col_segments,
            anchors,
            sum(sizes),
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
    for dtype, sizes, wide, use_max, inner in product(
        TRITON_DTYPES.values(), AOT_SIZES, flags, flags, flags
    ):
        pointers = {
            "p_cells": "i64" if use_max else "fp32",
            "p_out": dtype,
            "p_argmax": "i32" if use_max else "fp32",
        }
        launch = combine_launch(sizes, wide, use_max, inner)
        cases.append(AotCase(combine_kernel, pointers, launch))
    return cases
