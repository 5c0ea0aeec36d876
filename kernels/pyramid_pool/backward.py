"""Triton backward of pyramid_pool: every pixel gathers from the bins that hold it; no atomics.

Means: all pixels of a pair of segments (segments.py) lie in the same bins and get the same value,
which is computed once. Maxima: the gradients of all bins with the same argmax are summed and
written there, the rest of the map is filled with zeros before.
"""

from __future__ import annotations

from itertools import product

import torch
import triton
import triton.language as tl

from ..._layout import empty_map
from .._launch import TRITON_DTYPES, AotCase, Launch, on_device, run
from .._multiples import FACTORS, known_factor, known_multiple
from .grid_cells import COLUMN_CLASSES, column_class
from .segments import (
    AOT_SIZES,
    axis_edges,
    bin_begin,
    bin_end,
    count_segments,
    edge_capacity,
    edge_ranks,
    first_bin,
    last_bin,
    segment_begin,
    segment_begins,
    segment_capacity,
    segments_of,
)


@triton.jit
def add_level(value, p_bins, in_lines, row, b_column, height, width, N: tl.constexpr):
    """value [LINES, SEGMENTS] plus grad / pixels of the bins of one level that hold (row, column).

    p_bins [LINES, 1]: the level's N * N gradients of each line; b_column [SEGMENTS].
    """
    b_first = first_bin(b_column, N, width)
    b_last = last_bin(b_column, N, width)
    most = tl.max(b_last - b_first) + 1
    for i in range(first_bin(row, N, height), last_bin(row, N, height) + 1):
        rows = (bin_end(i, N, height) - bin_begin(i, N, height)).to(tl.float32)
        for step in range(most):
            b_bin = b_first + step
            mask = in_lines & (b_bin <= b_last)[None, :]
            b_grad = tl.load(p_bins + (i * N + b_bin)[None, :], mask=mask, other=0.0)
            columns = (bin_end(b_bin, N, width) - bin_begin(b_bin, N, width)).to(tl.float32)
            value += b_grad.to(tl.float32) / (rows * columns)[None, :]
    return value


@triton.jit(
    do_not_specialize=["lines", "height", "width", "row_segments", "col_segments", "anchors"]
)
def spread_means_kernel(
    p_grad,
    p_out,
    lines,
    height,
    width,
    row_segments,
    col_segments,
    anchors,
    SIZES: tl.constexpr,
    EDGES: tl.constexpr,
    SEGMENTS: tl.constexpr,
    LINES: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
    MULTIPLE: tl.constexpr,
):
    """out = sum of grad / pixels over the bins that hold a pixel.

    p_grad [B, lines, anchors] and p_out [B, lines, height, width] with B = 1 and lines planes, or
    with INNER lines channels and p_out [B, height, width, lines].
    Grid: B * row_segments * ceil(width / COLUMNS) * ceil(lines / LINES); one program owns COLUMNS
    columns of one row segment of LINES lines.
    Writes out once; reads grad, S elements a line, once a row segment, out of the L2 cache.
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
    col_edges = axis_edges(width, SIZES, EDGES)
    col_ranks = edge_ranks(col_edges)
    b_index = tl.arange(0, SEGMENTS)
    b_begin = segment_begins(b_index, col_segments, width, col_edges, col_ranks)
    b_begin = tl.minimum(b_begin, width - 1)  # what is past the last segment is not used
    b_line = (tl.program_id(0) % blocks) * LINES + tl.arange(0, LINES)
    in_lines = (b_line < lines)[:, None]
    p_bins = p_grad + (batch * lines + b_line)[:, None] * anchors

    value = tl.zeros([LINES, SEGMENTS], dtype=tl.float32)
    offset = 0
    for level in tl.static_range(len(SIZES)):
        value = add_level(
            value, p_bins + offset, in_lines, begin, b_begin, height, width, SIZES[level]
        )
        offset += SIZES[level] * SIZES[level]

    b_column = tile * COLUMNS + tl.arange(0, COLUMNS)
    b_inside = tl.minimum(b_column, width - 1)
    b_segment = segments_of(b_inside, col_segments, width, col_edges)
    b_segment = tl.broadcast_to(b_segment[None, :], [LINES, COLUMNS])
    b_out = tl.gather(value, b_segment, axis=1).to(p_out.dtype.element_ty)
    if INNER:
        lines = known_multiple(lines, MULTIPLE)
        p_tile = p_out + batch * height * width * lines
        p_tile += b_column.to(tl.int64)[None, :] * lines + b_line[:, None]
        row_stride = width.to(tl.int64) * lines
    else:
        width = known_multiple(width, MULTIPLE)
        p_tile = p_out + b_line.to(tl.int64)[:, None] * height * width + b_column[None, :]
        row_stride = width.to(tl.int64)
    mask = (b_line < lines)[:, None] & (b_column < width)[None, :]
    for row in range(begin, end):
        tl.store(p_tile + row * row_stride, b_out, mask=mask)


@triton.jit(do_not_specialize=["lines", "pixels", "anchors"])
def scatter_maxima_kernel(
    p_grad,
    p_argmax,
    p_out,
    lines,
    pixels,
    anchors,
    ANCHORS: tl.constexpr,
    CHUNK: tl.constexpr,
    INNER: tl.constexpr,
):
    """out[argmax of a bin] = sum of grad over the bins with this argmax; the rest is not written.

    p_grad, p_argmax (int32) [B, lines, anchors]; p_out [B, lines, pixels] with B = 1, or with INNER
    [B, pixels, lines]. Grid: B * lines * ceil(anchors / ANCHORS); one program owns ANCHORS bins of
    a line and compares them with all of the line. Bins that share an argmax add the same numbers in
    the same order, so it does not matter which of them writes last. S * S comparisons a line.
    """
    blocks = tl.cdiv(anchors, ANCHORS)
    line = (tl.program_id(0) // blocks).to(tl.int64)
    b_anchor = (tl.program_id(0) % blocks) * ANCHORS + tl.arange(0, ANCHORS)
    inside = b_anchor < anchors
    p_grad += line * anchors
    p_argmax += line * anchors
    b_argmax = tl.load(p_argmax + b_anchor, mask=inside, other=-1)
    total = tl.zeros([ANCHORS], dtype=tl.float32)
    for start in range(0, anchors, CHUNK):
        b_other = start + tl.arange(0, CHUNK)
        argmax = tl.load(p_argmax + b_other, mask=b_other < anchors, other=-1)
        grad = tl.load(p_grad + b_other, mask=b_other < anchors, other=0.0).to(tl.float32)
        is_same = b_argmax[:, None] == argmax[None, :]  # [ANCHORS, CHUNK]
        total += tl.sum(tl.where(is_same, grad[None, :], 0.0), axis=1)
    if INNER:
        p_out += (line // lines) * pixels * lines + line % lines
        p_target = p_out + b_argmax.to(tl.int64) * lines
    else:
        p_target = p_out + line * pixels + b_argmax
    tl.store(p_target, total.to(p_out.dtype.element_ty), mask=inside)


def spread_launch(columns: int, sizes: tuple[int, ...], inner: bool, multiple: int) -> Launch:
    """The configuration for a padded width: 64 bytes of a pixel together on channels-inner maps."""
    lines = (4096 if inner and multiple > 1 else 2048) // columns
    constants = {
        "SIZES": sizes,
        "EDGES": edge_capacity(sizes),
        "SEGMENTS": segment_capacity(sizes),
        "LINES": max(8, lines),  # tl.gather needs a line for each warp
        "COLUMNS": columns,
        "INNER": inner,
        "MULTIPLE": multiple,
    }
    return Launch(constants, warps=8, registers=128)


def scatter_launch(inner: bool) -> Launch:
    """One program a line up to 128 bins, 32 comparisons a thread at a time."""
    return Launch({"ANCHORS": 128, "CHUNK": 32, "INNER": inner}, warps=4)


def backward(
    grad: torch.Tensor,
    argmax: torch.Tensor,
    height: int,
    width: int,
    sizes: list[int],
    use_max: bool,
    channels_last: bool,
) -> torch.Tensor:
    """Gradient [B, C, height, width] of grad [B, C, S], channels_last or contiguous."""
    batch, channels, anchors = grad.shape
    sizes = tuple(sizes)
    out = empty_map((batch, channels, height, width), grad, channels_last)
    items, lines = (batch, channels) if channels_last else (1, batch * channels)
    with on_device(grad, argmax) as (grad, argmax):
        if use_max:
            out.zero_()
            launch = scatter_launch(channels_last)
            run(
                scatter_maxima_kernel,
                batch * channels * triton.cdiv(anchors, launch.constants["ANCHORS"]),
                grad,
                argmax,
                out,
                lines,
                height * width,
                anchors,
                launch=launch,
            )
        else:
            row_segments = count_segments(height, sizes)
            multiple = known_factor(grad, channels if channels_last else width)
            columns = column_class(width)
            launch = spread_launch(columns, sizes, channels_last, multiple)
            tiles = row_segments * triton.cdiv(width, columns)
            run(
                spread_means_kernel,
                items * tiles * triton.cdiv(lines, launch.constants["LINES"]),
                grad,
                out,
                lines,
                height,
                width,
                row_segments,
                count_segments(width, sizes),
                anchors,
                launch=launch,
            )
    return out


def aot_cases() -> list[AotCase]:
    """Every compilation that `backward` can ask for, for the pyramids of AOT_SIZES."""
    flags = (False, True)
    cases = []
    for dtype, inner in product(TRITON_DTYPES.values(), flags):
        means = {"p_grad": dtype, "p_out": dtype}
        for columns, sizes, multiple in product(COLUMN_CLASSES, AOT_SIZES, FACTORS[dtype]):
            launch = spread_launch(columns, sizes, inner, multiple)
            cases.append(AotCase(spread_means_kernel, means, launch))
        maxima = {**means, "p_argmax": "i32"}
        cases.append(AotCase(scatter_maxima_kernel, maxima, scatter_launch(inner)))
    return cases
