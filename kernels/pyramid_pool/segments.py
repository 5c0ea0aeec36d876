"""Segments of an axis: the runs of positions that lie in the same bins of every pyramid level.

The edges of all levels' bins (bin i of n covers floor(i size / n) up to ceil((i + 1) size / n), as
PyTorch has it) cut an axis into segments, so that every bin is a whole number of them. A segment's
index is the number of edges at or before it; where two edges coincide the segment between them is
empty, and its index is simply not met. An axis with no more positions than edges has one segment
per position instead.
"""

from __future__ import annotations

import triton
import triton.language as tl

TILE = 256  # columns of a program at most
WIDE_EDGES = 64  # edges of a wide axis at least, those at tile borders included
MAX_BINS = 64  # the sum of the sizes: edges of an axis are compared with each other in registers
AOT_SIZES = ((1, 3, 6, 8),)  # the released pyramid; kernels are compiled anew for others
MAX_SIDE = 2**24  # position * size stays a 32-bit integer


def count_edges(size: int, sizes: tuple[int, ...]) -> int:
    """Inner bin edges of an axis of `size` positions, coinciding ones counted one by one."""
    return sum((n - 1) * (1 if size % n == 0 else 2) for n in sizes)


def count_segments(size: int, sizes: tuple[int, ...], tiled: bool = False) -> int:
    """Segment indices of an axis, empty ones included; `tiled`: cut at tile borders too."""
    borders = (size - 1) // TILE if tiled else 0
    return min(count_edges(size, sizes) + borders + 1, size)


def edge_capacity(sizes: tuple[int, ...], wide: bool = False) -> int:
    """Length of the block of edges, for any axis, or any up to max_width: a power of two."""
    capacity = triton.next_power_of_2(max(2, 2 * sum(n - 1 for n in sizes)))
    return max(2 * capacity, WIDE_EDGES) if wide else capacity


def segment_capacity(sizes: tuple[int, ...], wide: bool = False) -> int:
    """Length of a block with an element for every segment: edges and one more."""
    edges = edge_capacity(sizes, wide)
    return edges if wide or 2 * sum(n - 1 for n in sizes) < edges else 2 * edges


def max_width(sizes: tuple[int, ...]) -> int:
    """Positions of the widest axis that can be cut at tile borders."""
    return TILE * (edge_capacity(sizes, wide=True) - 2 * sum(n - 1 for n in sizes))


@triton.jit
def put_level_edges(edges, offset, size, N: tl.constexpr):
    """The edges with those of N bins put in from `offset` on: N - 1 starts, then N - 1 ends."""
    b_bin = tl.arange(0, edges.shape[0]) - (offset - 1)
    is_start = (b_bin >= 1) & (b_bin < N)
    edges = tl.where(is_start, b_bin * size // N, edges)
    # Where N divides size, ends are starts again.
    b_bin -= N - 1
    is_end = (b_bin >= 1) & (b_bin < N) & (size % N != 0)
    return tl.where(is_end, (b_bin * size + (N - 1)) // N, edges)


@triton.jit
def axis_edges(size, SIZES: tl.constexpr, EDGES: tl.constexpr, TILE: tl.constexpr = 0):
    """Inner bin edges of all levels [EDGES], unordered, filled up with `size`.

    With TILE its multiples are edges too: then no segment crosses the border of a tile.
    """
    edges = tl.full([EDGES], 0, dtype=tl.int32) + size
    offset = 0
    for level in tl.static_range(len(SIZES)):
        if SIZES[level] > 1:
            edges = put_level_edges(edges, offset, size, SIZES[level])
        offset += 2 * (SIZES[level] - 1)
    if TILE > 0:
        b_border = (tl.arange(0, EDGES) - (offset - 1)) * TILE
        edges = tl.where((b_border > 0) & (b_border < size), b_border, edges)
    return edges


@triton.jit
def edge_ranks(edges):
    """How many edges are at or before each edge [EDGES]."""
    return tl.sum((edges[None, :] <= edges[:, None]).to(tl.int32), axis=1)


@triton.jit
def segment_begin(index, segments, size, edges, ranks):
    """First position of a segment, `size` for an index past the last; empty ones get their edge."""
    begin = tl.min(tl.where(ranks >= index, edges, size))
    begin = tl.where(index == 0, 0, begin)
    return tl.where(segments == size, index, begin)


@triton.jit
def segment_begins(b_index, segments, size, edges, ranks):
    """segment_begin of a block of indices [K]."""
    begin = tl.min(tl.where(ranks[None, :] >= b_index[:, None], edges[None, :], size), axis=1)
    begin = tl.where(b_index == 0, 0, begin)
    return tl.where(segments == size, b_index, begin)


@triton.jit
def segment_of(position, segments, size, edges):
    """Index of the segment that holds a position."""
    index = tl.sum((edges <= position).to(tl.int32))
    return tl.where(segments == size, position, index)


@triton.jit
def segments_of(b_position, segments, size, edges):
    """segment_of of a block of positions [K]."""
    index = tl.sum((edges[None, :] <= b_position[:, None]).to(tl.int32), axis=1)
    return tl.where(segments == size, b_position, index)


@triton.jit
def bin_begin(index, n, size):
    return index * size // n


@triton.jit
def bin_end(index, n, size):
    return ((index + 1) * size + n - 1) // n


@triton.jit
def first_bin(position, n, size):
    """The first of n bins that hold a position; the last one is below."""
    return position * n // size


@triton.jit
def last_bin(position, n, size):
    return ((position + 1) * n - 1) // size
