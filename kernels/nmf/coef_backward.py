"""Back through one update of the coefficients of nmf, and the sums that go on to the bases.

With C' = C P / Q, P = X^T A, Q = C G + eps and the gradient dC' of C':

    dP = dC' C / Q,  dQ = -dC' C' / Q,  dC = dC' P / Q + dQ G,  dG = C^T dQ

and G = A^T A passes A (dG + dG^T) on. An update of the bases that used C' has added X^T F and
C' (dH + dH^T) to dC' before (bases_backward.py).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._multiples import known_multiple
from .products import (
    divide,
    load_map,
    multiply,
    multiply_square,
    ranked,
    store_sums,
    sum_products,
)


@triton.jit
def project_twice(
    p_x,
    p_first,
    p_second,
    b_position,
    channels,
    positions,
    width,
    CHUNK: tl.constexpr,
    RANK: tl.constexpr,
    INNER: tl.constexpr,
    EXACT: tl.constexpr,
):
    """first^T x and second^T x of a tile of positions, as `project` has them: x is read once."""
    b_rank = tl.arange(0, RANK)
    b_first_acc = tl.zeros([RANK, b_position.shape[0]], dtype=tl.float32)
    b_second_acc = tl.zeros([RANK, b_position.shape[0]], dtype=tl.float32)
    for start in range(0, width, CHUNK):
        b_channel = start + tl.arange(0, CHUNK)
        b_offset = b_rank[:, None] * width + b_channel[None, :]
        b_x = load_map(p_x, b_channel, b_position, channels, positions, INNER)
        b_first_acc += multiply(tl.load(p_first + b_offset), b_x, False, EXACT)
        b_second_acc += multiply(tl.load(p_second + b_offset), b_x, False, EXACT)
    return b_first_acc, b_second_acc


@triton.jit
def back_tile(
    p_x,
    pointers,
    b_position,
    sizes,
    numbers,
    source,
    begins,
    CHUNK: tl.constexpr,
    RANK: tl.constexpr,
    INNER: tl.constexpr,
    EXACT: tl.constexpr,
):
    """dP, dQ and C [RANK, POSITIONS] of a tile; dP, and dC unless the update `begins`, are written.

    pointers: as nmf_coef_backward_kernel has them, of the item.
    """
    p_bases, p_factor, p_gram, p_coef, p_next, p_grad, p_dcoef, p_dp = pointers
    channels, positions, rank, width = sizes
    inv_t, eps = numbers
    b_rank = tl.arange(0, RANK)
    b_offset, mask = ranked(b_rank, b_position, positions, rank)
    b_p, b_dnext = project_twice(
        p_x,
        p_bases,
        p_factor,
        b_position,
        channels,
        positions,
        width,
        CHUNK,
        RANK,
        INNER,
        EXACT,
    )
    if source == 1:
        b_dnext += tl.load(p_grad + b_offset, mask=mask, other=0.0).to(tl.float32)
    elif source == 2:
        b_dnext += tl.load(p_dcoef + b_offset, mask=mask, other=0.0)
    b_next = tl.load(p_next + b_offset, mask=mask, other=0.0)
    b_dnext += multiply_square(p_gram + RANK * RANK, b_next, RANK, False, 64)
    b_coef = tl.load(p_coef + b_offset, mask=mask, other=0.0)
    b_q = tl.where(mask, multiply_square(p_gram, b_coef, RANK, False, 64) + eps, 1.0)
    b_scaled = divide(tl.where(mask, b_dnext, 0.0), b_q)
    b_dq = -(b_scaled * b_next)
    b_dp = b_scaled * b_coef
    b_dcoef = b_scaled * b_p + multiply_square(p_gram, b_dq, RANK, False, 64)
    if begins:
        b_delta = tl.sum(b_coef * b_dcoef, axis=0)
        b_dp += inv_t * (b_coef * (b_dcoef - b_delta[None, :]))
    else:
        tl.debug_barrier()  # all threads have read the gradients that are replaced
        tl.store(p_dcoef + b_offset, b_dcoef, mask=mask)
    tl.store(p_dp + b_offset, b_dp, mask=mask)
    return b_dp, b_dq, b_coef


@triton.jit
def sum_tile_twice(
    p_x,
    b_dp,
    b_dq,
    b_coef,
    p_dsums,
    p_sums,
    b_position,
    sizes,
    CHUNK: tl.constexpr,
    RANK: tl.constexpr,
    INNER: tl.constexpr,
    EXACT: tl.constexpr,
):
    """dsums = [x dP; C^T dQ], sums = [x C; C^T C] over one tile, whose matrices are at hand."""
    channels, positions, _rank, width = sizes
    b_rank = tl.arange(0, RANK)
    b_right = tl.trans(b_coef)
    store_sums(p_dsums, width + b_rank, multiply(b_coef, tl.trans(b_dq), False, False), RANK)
    store_sums(p_sums, width + b_rank, multiply(b_coef, b_right, False, False), RANK)
    b_dright = tl.trans(b_dp)
    for start in range(0, width, CHUNK):
        b_channel = start + tl.arange(0, CHUNK)
        b_x = load_map(p_x, b_channel, b_position, channels, positions, INNER)
        store_sums(p_dsums, b_channel, multiply(b_x, b_dright, EXACT, False), RANK)
        store_sums(p_sums, b_channel, multiply(b_x, b_right, EXACT, False), RANK)


@triton.jit
def sum_map_twice(
    p_x,
    p_dp,
    p_coef,
    p_dsums,
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
    """x dP and x C over the positions from `begin` to `end`, to the first rows of their tables."""
    channels, positions, rank, width = sizes
    b_rank = tl.arange(0, RANK)
    for start in tl.range(0, width, CHUNK, disable_licm=True):
        b_channel = start + tl.arange(0, CHUNK)
        b_dsum = tl.zeros([CHUNK, RANK], dtype=tl.float32)
        b_sum = tl.zeros([CHUNK, RANK], dtype=tl.float32)
        for first in range(begin, end, TILE):
            b_position = first + tl.arange(0, TILE)
            b_offset, mask = ranked(b_rank, b_position, tl.minimum(end, positions), rank)
            b_x = load_map(p_x, b_channel, b_position, channels, positions, INNER)
            b_dp = tl.load(p_dp + b_offset, mask=mask, other=0.0)
            b_dsum += multiply(b_x, tl.trans(b_dp), EXACT, False)
            b_coef = tl.load(p_coef + b_offset, mask=mask, other=0.0)
            b_sum += multiply(b_x, tl.trans(b_coef), EXACT, False)
        store_sums(p_dsums, b_channel, b_dsum, RANK)
        store_sums(p_sums, b_channel, b_sum, RANK)


@triton.jit(
    do_not_specialize=[
        *("channels", "positions", "rank", "width", "splits", "tiles", "source", "begins")
    ]
)
def nmf_coef_backward_kernel(
    p_x,
    p_bases,
    p_factor,
    p_squares,
    p_coef,
    p_next,
    p_grad,
    p_dcoef,
    p_dp,
    p_dq,
    p_sums,
    inv_t,
    eps,
    channels,
    positions,
    rank,
    width,
    splits,
    tiles,
    source,
    begins,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
    RANK: tl.constexpr,
    INNER: tl.constexpr,
    EXACT: tl.constexpr,
    MULTIPLE: tl.constexpr,
    SINGLE: tl.constexpr,
):
    """dP and dC of C' = C P / (C G + eps), P = x^T A; and sums [x dP; C^T dQ], [x C; C^T C].

    dC' = x^T factor + C' square + what `source` says: 0 nothing, 1 grad, 2 dcoef. Where `begins`,
    C is the softmax of inv_t P: dcoef is not written, its share of P is added to dP.
    p_x [items, D, N]: contiguous, or with INNER the channel index fastest; D or N, whichever is
    fastest, and R are multiples of MULTIPLE. p_bases, p_factor [items, RANK, width], D padded with
    zeros; p_squares [items, 2, RANK, RANK]: G and `square`, symmetric. p_coef: C, p_next: C',
    p_grad, p_dcoef (replaced), p_dp, p_dq (scratch, for SINGLE unused) [items, N, R]. p_sums
    [items, splits, 2, width + RANK, RANK].
    Grid: items * splits; one program owns `tiles` tiles of TILE positions of one item, with SINGLE
    one.
    Reads x twice, the second time out of the level-2 cache where what all programs work on fits;
    reads three maps of the coefficients' size, writes two and 2 * (D + R) * R sums. The bases and
    factors, 2 * D * R elements a tile, come out of that cache.
    """
    if INNER:
        channels = known_multiple(channels, MULTIPLE)
    else:
        positions = known_multiple(positions, MULTIPLE)
    rank = known_multiple(rank, MULTIPLE)
    width = known_multiple(width, CHUNK)
    sizes = (channels, positions, rank, width)
    numbers = (inv_t, eps)
    item = (tl.program_id(0) // splits).to(tl.int64)
    first = (tl.program_id(0) % splits) * tiles
    of_coef = item * positions * rank
    p_x += item * channels * positions
    p_coef += of_coef
    p_dp += of_coef
    p_dsums = p_sums + tl.program_id(0).to(tl.int64) * (2 * (width + RANK) * RANK)
    p_sums = p_dsums + (width + RANK) * RANK
    pointers = (
        p_bases + item * RANK * width,
        p_factor + item * RANK * width,
        p_squares + item * (2 * RANK * RANK),
        p_coef,
        p_next + of_coef,
        p_grad + of_coef,
        p_dcoef + of_coef,
        p_dp,
    )
    if SINGLE:
        b_position = first * TILE + tl.arange(0, TILE)
        b_dp, b_dq, b_coef = back_tile(
            p_x,
            pointers,
            b_position,
            sizes,
            numbers,
            source,
            begins,
            CHUNK,
            RANK,
            INNER,
            EXACT,
        )
        sum_tile_twice(
            p_x,
            b_dp,
            b_dq,
            b_coef,
            p_dsums,
            p_sums,
            b_position,
            sizes,
            CHUNK,
            RANK,
            INNER,
            EXACT,
        )
    else:
        p_dq += of_coef
        for tile in tl.range(first, first + tiles, disable_licm=True):
            b_position = tile * TILE + tl.arange(0, TILE)
            b_dp, b_dq, b_coef = back_tile(
                p_x,
                pointers,
                b_position,
                sizes,
                numbers,
                source,
                begins,
                CHUNK,
                RANK,
                INNER,
                EXACT,
            )
            b_offset, mask = ranked(tl.arange(0, RANK), b_position, positions, rank)
            tl.store(p_dq + b_offset, b_dq, mask=mask)
        tl.debug_barrier()  # rows are read again, by other threads than have written them
        begin = first * TILE
        end = begin + tiles * TILE
        sum_map_twice(
            p_x,
            p_dp,
            p_coef,
            p_dsums,
            p_sums,
            begin,
            end,
            sizes,
            CHUNK,
            TILE,
            RANK,
            INNER,
            EXACT,
        )
        sum_products(p_coef, p_dq, p_dsums, width, begin, end, positions, rank, TILE, RANK)
        sum_products(p_coef, p_coef, p_sums, width, begin, end, positions, rank, TILE, RANK)
