"""The gradient of the map in nmf: products of matrices with few columns, written once.

dX is the sum of A dP^T over the updates of the coefficients and of dP C^T over those of the bases:
one product in the end, of what the updates leave behind, so that nothing of the size of X is added
to step by step.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._multiples import known_multiple
from .products import divide, multiply, multiply_square, ranked


@triton.jit
def store_map(p_x, b_value, b_channel, b_position, channels, positions, INNER: tl.constexpr):
    """A tile [CHANNELS, POSITIONS] of an item's map, laid out as in load_map."""
    if INNER:
        b_offset = b_position.to(tl.int64)[None, :] * channels + b_channel[:, None]
    else:
        b_offset = b_channel.to(tl.int64)[:, None] * positions + b_position[None, :]
    mask = (b_channel < channels)[:, None] & (b_position < positions)[None, :]
    tl.store(p_x + b_offset, b_value, mask=mask)


@triton.jit
def outer(p_left, p_right, b_channel, b_position, b_column, channels, positions, rank):
    """left right^T of some columns of p_left [channels, rank] and p_right [positions, rank]."""
    in_rank = b_column < rank
    p_rows = p_left + b_channel[:, None] * rank + b_column[None, :]
    b_left = tl.load(p_rows, mask=(b_channel < channels)[:, None] & in_rank[None, :], other=0.0)
    b_offset, mask = ranked(b_column, b_position, positions, rank)
    b_right = tl.load(p_right + b_offset, mask=mask, other=0.0)
    return multiply(b_left, b_right, False, False)


@triton.jit(do_not_specialize=["items", "positions", "channels", "rank", "steps"])
def nmf_dx_kernel(
    p_first,
    p_bases,
    p_factor,
    p_dp,
    p_coef,
    p_dx,
    items,
    positions,
    channels,
    rank,
    steps,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    CHUNK: tl.constexpr,
    INNER: tl.constexpr,
    MULTIPLE: tl.constexpr,
):
    """dx = first dp[0]^T + sum over steps of bases[k] dp[k + 1]^T + factor[k] coef[k + 1]^T.

    p_first [items, D, R]. All steps: p_bases, p_factor [steps, items, D, R], p_dp [steps + 1,
    items, N, R], p_coef [steps + 1 or more, items, N, R]. p_dx [items, D, N]: contiguous, or with
    INNER the channel index fastest; D or N, whichever is fastest, and R are multiples of MULTIPLE.
    Grid: items * ceil(N / POSITIONS) * ceil(D / CHANNELS); one program owns a tile of one item.
    Writes dx once; reads 2 * steps + 1 maps of the coefficients' size D / CHANNELS times, and as
    many matrices of the bases' size N / POSITIONS times, all but once out of the level-2 cache.
    """
    if INNER:
        channels = known_multiple(channels, MULTIPLE)
    else:
        positions = known_multiple(positions, MULTIPLE)
    rank = known_multiple(rank, MULTIPLE)
    blocks = tl.cdiv(channels, CHANNELS)
    tiles = tl.cdiv(positions, POSITIONS)
    block = tl.program_id(0) % blocks
    tile = (tl.program_id(0) // blocks) % tiles
    item = (tl.program_id(0) // (blocks * tiles)).to(tl.int64)
    b_channel = block * CHANNELS + tl.arange(0, CHANNELS)
    b_position = tile * POSITIONS + tl.arange(0, POSITIONS)
    b_column = tl.arange(0, CHUNK)
    of_bases = rank.to(tl.int64) * channels
    of_coef = rank.to(tl.int64) * positions
    p_first += item * of_bases
    p_dp += item * of_coef
    p_bases += item * of_bases
    p_factor += item * of_bases
    p_coef += item * of_coef
    b_acc = tl.zeros([CHANNELS, POSITIONS], dtype=tl.float32)
    chunks = tl.cdiv(rank, CHUNK)
    for chunk in range(chunks):
        b_acc += outer(
            p_first,
            p_dp,
            b_channel,
            b_position,
            chunk * CHUNK + b_column,
            channels,
            positions,
            rank,
        )
    for index in range(steps * chunks):
        step = index // chunks
        b_some = index % chunks * CHUNK + b_column
        bases = step * items * of_bases
        coef = (step + 1) * items * of_coef
        b_acc += outer(
            p_bases + bases, p_dp + coef, b_channel, b_position, b_some, channels, positions, rank
        )
        b_acc += outer(
            p_factor + bases,
            p_coef + coef,
            b_channel,
            b_position,
            b_some,
            channels,
            positions,
            rank,
        )
    p_dx += item * channels * positions
    store_map(p_dx, b_acc, b_channel, b_position, channels, positions, INNER)


@triton.jit(do_not_specialize=["channels", "positions", "rank", "width", "has_grad"])
def nmf_one_step_kernel(
    p_bases,
    p_gram,
    p_coef,
    p_grad,
    p_dx,
    p_dbases,
    eps,
    channels,
    positions,
    rank,
    width,
    has_grad,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
    RANK: tl.constexpr,
    INNER: tl.constexpr,
    MULTIPLE: tl.constexpr,
):
    """dx = A dP^T, dP = grad C / (C G + eps), of one update of the coefficients; dbases = 0.

    p_bases [items, RANK, width]: A, D padded with zeros; p_gram [items, RANK, RANK]: G; p_coef: C,
    p_grad (0 unless it `has_grad`) [items, N, R]; p_dx [items, D, N]: contiguous, or with INNER the
    channel index fastest; D or N, whichever is fastest, and R are multiples of MULTIPLE. p_dbases
    [items, D, R].
    Grid: items * ceil(N / TILE); one program owns TILE positions of one item. Reads coefficients
    and gradient once and writes dx once; the bases come out of the level-2 cache.
    Source: section 3.3 of Geng et al. (ICLR 2021).
    """
    if INNER:
        channels = known_multiple(channels, MULTIPLE)
    else:
        positions = known_multiple(positions, MULTIPLE)
    rank = known_multiple(rank, MULTIPLE)
    width = known_multiple(width, CHUNK)
    tiles = tl.cdiv(positions, TILE)
    tile = tl.program_id(0) % tiles
    item = (tl.program_id(0) // tiles).to(tl.int64)
    b_rank = tl.arange(0, RANK)
    b_position = tile * TILE + tl.arange(0, TILE)
    b_offset, mask = ranked(b_rank, b_position, positions, rank)
    b_offset += item * positions * rank
    b_coef = tl.load(p_coef + b_offset, mask=mask, other=0.0)
    b_dp = tl.zeros([RANK, TILE], dtype=tl.float32)
    if has_grad:
        b_dp = tl.load(p_grad + b_offset, mask=mask, other=0.0).to(tl.float32)
    b_q = multiply_square(p_gram + item * RANK * RANK, b_coef, RANK, False, 64) + eps
    b_dp = divide(b_dp, tl.where(mask, b_q, 1.0)) * b_coef
    p_bases += item * RANK * width
    p_dx += item * channels * positions
    for start in range(0, width, CHUNK):
        b_channel = start + tl.arange(0, CHUNK)
        b_bases = tl.load(p_bases + b_rank[None, :] * width + b_channel[:, None])
        b_dx = multiply(b_bases, b_dp, False, False)
        store_map(p_dx, b_dx, b_channel, b_position, channels, positions, INNER)
        if tile == 0:
            b_zero, in_bases = ranked(b_rank, b_channel, channels, rank)
            p_zero = p_dbases + item * channels * rank + b_zero
            tl.store(p_zero, tl.zeros([RANK, CHUNK], dtype=tl.float32), mask=in_bases)
