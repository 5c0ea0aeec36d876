"""The pass over positions of a step: new coefficients, and the sums that new bases are made of."""

from __future__ import annotations

import triton
import triton.language as tl

from .._multiples import known_multiple
from .._rare import hidden_zero
from .products import (
    divide,
    load_map,
    multiply,
    multiply_square,
    project,
    ranked,
    store_sums,
    sum_products,
)


@triton.jit
def update_tile(
    p_x,
    p_bases,
    p_gram,
    p_coef,
    p_next,
    p_out,
    b_position,
    sizes,
    numbers,
    flags,
    CHUNK: tl.constexpr,
    RANK: tl.constexpr,
    INNER: tl.constexpr,
    EXACT: tl.constexpr,
):
    """coef * P / (coef G + eps) of a tile of positions, P = x^T bases: [RANK, POSITIONS]."""
    channels, positions, rank, width = sizes
    inv_t, eps = numbers
    begins, keeps, ends = flags
    b_rank = tl.arange(0, RANK)
    b_offset, mask = ranked(b_rank, b_position, positions, rank)
    b_p = project(p_x, p_bases, b_position, channels, positions, width, CHUNK, RANK, INNER, EXACT)
    if begins:
        b_scores = tl.where((b_rank < rank)[:, None], b_p * inv_t, float("-inf"))
        b_weight = tl.exp(b_scores - tl.max(b_scores, axis=0)[None, :])
        b_coef = b_weight * (1.0 / tl.sum(b_weight, axis=0))[None, :]
        if keeps | ends:
            tl.store(p_coef + b_offset, b_coef, mask=mask)
    else:
        b_coef = tl.load(p_coef + b_offset, mask=mask, other=0.0)
    b_q = multiply_square(p_gram, b_coef, RANK, False, 64) + eps
    b_next = tl.where(mask, divide(b_coef * b_p, b_q), 0.0)
    tl.debug_barrier()  # where coefficients are replaced, all threads have read them
    if ends:
        tl.store(p_out + b_offset, b_next, mask=mask)
    if keeps | (ends == 0):
        tl.store(p_next + b_offset, b_next, mask=mask)
    return b_next


@triton.jit
def sum_tile(
    p_x,
    b_coef,
    p_sums,
    b_position,
    sizes,
    CHUNK: tl.constexpr,
    RANK: tl.constexpr,
    INNER: tl.constexpr,
    EXACT: tl.constexpr,
):
    """sums = [x coef; coef^T coef] over one tile of positions, whose coefficients are at hand."""
    channels, positions, _rank, width = sizes
    b_rank = tl.arange(0, RANK)
    b_right = tl.trans(b_coef)
    for start in range(0, width, CHUNK):
        b_channel = start + tl.arange(0, CHUNK)
        b_x = load_map(p_x, b_channel, b_position, channels, positions, INNER)
        b_sum = multiply(b_x, b_right, EXACT, False)
        store_sums(p_sums, b_channel, b_sum, RANK)
    b_square = multiply(b_coef, b_right, False, False)
    store_sums(p_sums, width + b_rank, b_square, RANK)


@triton.jit
def sum_tiles(
    p_x,
    p_coef,
    p_sums,
    begin,
    end,
    sizes,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
    RANK: tl.constexpr,
    INNER: tl.constexpr,
    EXACT: tl.constexpr,
):
    """The same over the positions from `begin` to `end`, whose coefficients are read."""
    channels, positions, rank, width = sizes
    b_rank = tl.arange(0, RANK)
    for start in tl.range(0, width, CHUNK, disable_licm=True):
        b_channel = start + tl.arange(0, CHUNK)
        b_sum = tl.zeros([CHUNK, RANK], dtype=tl.float32)
        for first in range(begin, end, TILE):
            b_position = first + tl.arange(0, TILE)
            b_offset, mask = ranked(b_rank, b_position, tl.minimum(end, positions), rank)
            b_coef = tl.load(p_coef + b_offset, mask=mask, other=0.0)
            b_x = load_map(p_x, b_channel, b_position, channels, positions, INNER)
            b_sum += multiply(b_x, tl.trans(b_coef), EXACT, False)
        store_sums(p_sums, b_channel, b_sum, RANK)
    sum_products(p_coef, p_coef, p_sums, width, begin, end, positions, rank, TILE, RANK)


@triton.jit(
    do_not_specialize=[
        *("channels", "positions", "rank", "width", "splits", "tiles"),
        *("begins", "keeps", "ends"),
    ]
)
def nmf_coef_kernel(
    p_x,
    p_bases,
    p_gram,
    p_coef,
    p_next,
    p_out,
    p_sums,
    inv_t,
    eps,
    channels,
    positions,
    rank,
    width,
    splits,
    tiles,
    begins,
    keeps,
    ends,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
    RANK: tl.constexpr,
    INNER: tl.constexpr,
    EXACT: tl.constexpr,
    MULTIPLE: tl.constexpr,
    SINGLE: tl.constexpr,
):
    """next = coef * P / (coef G + eps), P = x^T A, G = A^T A; and sums [x next; next^T next].

    With `begins`, coef = softmax(inv_t P) is computed first, and written where `keeps` or `ends`.
    p_x [items, D, N]: contiguous, or with INNER the channel index fastest; D or N, whichever is
    fastest, and R are multiples of MULTIPLE. p_bases [items, RANK, width]: A, D padded with zeros;
    p_gram [items, RANK, RANK]: G. p_coef, p_next (may be p_coef) [items, N, R]. Where the update
    `ends` the loop, p_out [items, N, R] is written, and p_next only if it `keeps`; else p_next and
    the partial sums p_sums [items, splits, width + RANK, RANK].
    Grid: items * splits; one program owns `tiles` tiles of TILE positions of one item.
    Reads x twice, the second time out of the level-2 cache where what all programs work on fits;
    reads and writes the coefficients once, and writes (D + R) * R sums. The bases, D * R elements a
    tile, come out of that cache.
    Source: Geng et al. (ICLR 2021), algorithm 1.
    """
    if INNER:
        channels = known_multiple(channels, MULTIPLE)
    else:
        positions = known_multiple(positions, MULTIPLE)
    rank = known_multiple(rank, MULTIPLE)
    width = known_multiple(width, CHUNK)
    sizes = (channels, positions, rank, width)
    item = (tl.program_id(0) // splits).to(tl.int64)
    first = (tl.program_id(0) % splits) * tiles
    of_coef = item * positions * rank
    p_x += item * channels * positions
    p_coef += of_coef
    p_next += of_coef
    p_out += of_coef
    p_bases += item * RANK * width
    p_gram += item * RANK * RANK
    p_sums += tl.program_id(0).to(tl.int64) * (width + RANK) * RANK
    flags = (begins, keeps, ends)
    if SINGLE:
        b_position = first * TILE + tl.arange(0, TILE)
        b_coef = update_tile(
            p_x,
            p_bases,
            p_gram,
            p_coef,
            p_next,
            p_out,
            b_position,
            sizes,
            (inv_t, eps),
            flags,
            CHUNK,
            RANK,
            INNER,
            EXACT,
        )
        if ends == 0:
            sum_tile(p_x, b_coef, p_sums, b_position, sizes, CHUNK, RANK, INNER, EXACT)
    else:
        for tile in tl.range(first, first + tiles, disable_licm=True):
            b_position = tile * TILE + tl.arange(0, TILE)
            # With an address an element, those of all tiles' factors would take the registers.
            again = hidden_zero(tile) if RANK > 64 and MULTIPLE == 1 else 0
            update_tile(
                p_x + again,
                p_bases + again,
                p_gram + again,
                p_coef,
                p_next,
                p_out,
                b_position,
                sizes,
                (inv_t, eps),
                flags,
                CHUNK,
                RANK,
                INNER,
                EXACT,
            )
        if ends == 0:
            tl.debug_barrier()  # coefficients are read by other threads than have written them
            begin = first * TILE
            end = begin + tiles * TILE
            sum_tiles(p_x, p_next, p_sums, begin, end, sizes, CHUNK, TILE, RANK, INNER, EXACT)
