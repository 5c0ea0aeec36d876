"""The two kernels that go back through one update of nmf.

With U' = U P / Q, Q = U M + eps and the gradient dU' of U':

    dP = dU' U / Q,  dQ = -dU' U' / Q,  dU = dU' P / Q + dQ M,  dM = U^T dQ

and a Gram matrix M = V^T V passes V (dM + dM^T) on. For the coefficients C, P = X^T A and
M = A^T A; for the bases A, P = X C and M = C^T C.
"""

from __future__ import annotations

from itertools import product

import triton
import triton.language as tl

from .._launch import AotCase, Launch
from .sums import CHUNK, RANK_CLASSES, TILES, tables_at_once
from .sums_products import multiply_square, project_positions, store_gram, sum_tables


@triton.jit(
    do_not_specialize=[
        "positions",
        "channels",
        "rank",
        "first_tile",
        "tiles",
        "parts",
        "begins",
        "ends",
        "alone",
    ],
    do_not_specialize_on_alignment=[
        "p_x",
        "p_bases",
        "p_coef",
        "p_next",
        "p_dnext",
        "p_factor",
        "p_dcoef",
        "p_dp",
        "p_dq",
    ],
)
def nmf_coef_backward_kernel(
    p_x,
    p_bases,
    p_gram,
    p_coef,
    p_next,
    p_dnext,
    p_factor,
    p_dgram,
    p_dcoef,
    p_dp,
    p_dq,
    inv_t,
    eps,
    positions,
    channels,
    rank,
    first_tile,
    tiles,
    parts,
    begins,
    ends,
    alone,
    POSITIONS: tl.constexpr,
    CHUNK: tl.constexpr,
    RANK: tl.constexpr,
    PARTS: tl.constexpr,
    INNER: tl.constexpr,
):
    """dP, dQ and dcoef of next = coef P / Q, P = x^T bases, Q = coef G + eps.

    The gradient of next is dnext and, unless the update `ends` the loop, what the update of the
    bases after it passes on: x^T factor + next (dH + dH^T). Where `begins`, coef is the softmax of
    inv_t P: dcoef is not written, its share of P is added to dP. `alone`: dP is all that is wanted.
    p_x [items, D, N]: contiguous, or with INNER the channel index fastest. p_bases, p_factor
    [items, D, R]; p_coef, p_next, p_dnext, p_dcoef (may be p_dnext), p_dp, p_dq [items, N, R].
    p_gram, p_dgram [items, parts, RANK, RANK]: partial sums of G and dH.
    Grid: items * tiles; one program owns POSITIONS positions of one item, the slab being `tiles`
    tiles from first_tile on.
    Reads x twice, the second time out of the level-2 cache, and six maps of the coefficients' size
    once; the bases, 2 * D * R elements a program, come out of that cache too.
    """
    item = (tl.program_id(0) // tiles).to(tl.int64)
    b_position = (first_tile + tl.program_id(0) % tiles) * POSITIONS + tl.arange(0, POSITIONS)
    b_rank = tl.arange(0, RANK)
    in_rank = (b_rank < rank)[None, :]
    mask = (b_position < positions)[:, None] & in_rank
    b_offset = b_position.to(tl.int64)[:, None] * rank + b_rank[None, :]
    p_x += item * channels * positions
    p_coef += item * positions * rank
    p_next += item * positions * rank
    p_dq += item * positions * rank
    p_factor += item * channels * rank
    p_bases += item * channels * rank
    grams = (p_gram + item * parts * (RANK * RANK), RANK * RANK, parts)
    dgrams = (p_dgram + item * parts * (RANK * RANK), RANK * RANK, parts)
    b_offset_item = item * positions * rank + b_offset

    b_dnext = tl.load(p_dnext + b_offset_item, mask=mask, other=0.0)
    if ends == 0:
        b_dnext += project_positions(
            p_x, p_factor, b_position, positions, channels, rank, CHUNK, RANK, INNER
        )
        b_dnext += multiply_square(
            p_next, dgrams, b_position, positions, rank, CHUNK, RANK, PARTS, True
        )
    b_q = multiply_square(p_coef, grams, b_position, positions, rank, CHUNK, RANK, PARTS, False)
    b_scaled = tl.div_rn(b_dnext, tl.where(mask, b_q + eps, 1.0))
    b_coef = tl.load(p_coef + b_offset, mask=mask, other=0.0)
    b_dp = b_scaled * b_coef
    if alone == 0:
        b_next = tl.load(p_next + b_offset, mask=mask, other=0.0)
        tl.store(p_dq + b_offset, -(b_scaled * b_next), mask=mask)
        b_p = project_positions(
            p_x, p_bases, b_position, positions, channels, rank, CHUNK, RANK, INNER
        )
        tl.debug_barrier()  # rows of dQ are read by other threads than have written them
        b_dcoef = b_scaled * b_p
        b_dcoef += multiply_square(
            p_dq, grams, b_position, positions, rank, CHUNK, RANK, PARTS, False
        )
        if begins:
            delta = tl.sum(b_coef * b_dcoef, axis=1)
            b_dp += inv_t * (b_coef * (b_dcoef - delta[:, None]))
        else:
            tl.store(p_dcoef + b_offset_item, b_dcoef, mask=mask)
    tl.store(p_dp + b_offset_item, b_dp, mask=mask)


@triton.jit(
    do_not_specialize=[
        "channels",
        "rank",
        "rows",
        "square_row",
        "splits",
        "parts",
        "share",
        "finish",
    ],
    do_not_specialize_on_alignment=["p_bases", "p_next", "p_dnext", "p_factor", "p_dq"],
)
def nmf_bases_backward_kernel(
    p_bases,
    p_next,
    p_dnext,
    p_dsums,
    p_sums,
    p_factor,
    p_dq,
    p_dgram,
    p_gram,
    eps,
    channels,
    rank,
    rows,
    square_row,
    splits,
    parts,
    share,
    finish,
    CHUNK: tl.constexpr,
    RANK: tl.constexpr,
    PARTS: tl.constexpr,
):
    """factor = dP, dH and dbases of next = bases * P / Q, P = x coef, Q = bases H + eps.

    The gradient of next is dnext and what the update of the coefficients after it passes on:
    x dP' + next (dG + dG^T). With `finish` that sum is all that is computed. The result replaces
    dnext.
    p_bases, p_next, p_dnext, p_factor, p_dq (scratch) [items, D, R]. p_dsums, p_sums [items,
    splits, rows, RANK]: partial sums of x dP' and P, and from square_row on of dG and H.
    p_dgram, p_gram [items, parts, RANK, RANK]: partial sums of dH = bases^T dQ and bases^T bases.
    Grid: items * parts; one program owns `share` rows of the bases of one item.
    Reads the sums of its rows once, and those of dG and H for every CHUNK rows.
    """
    item = (tl.program_id(0) // parts).to(tl.int64)
    part = tl.program_id(0) % parts
    begin = part * share
    end = tl.minimum(begin + share, channels)
    b_rank = tl.arange(0, RANK)
    stride = rows * RANK
    p_bases += item * channels * rank
    p_next += item * channels * rank
    p_dnext += item * channels * rank
    p_factor += item * channels * rank
    p_dq += item * channels * rank
    p_dsums += item * splits * rows * RANK
    p_sums += item * splits * rows * RANK
    squares = (p_sums + square_row * RANK, stride, splits)
    dsquares = (p_dsums + square_row * RANK, stride, splits)
    for row in range(begin, end, CHUNK):
        b_row = row + tl.arange(0, CHUNK)
        mask = (b_row < channels)[:, None] & (b_rank < rank)[None, :]
        b_offset = b_row[:, None] * rank + b_rank[None, :]
        b_sum_offset = b_row[:, None] * RANK + b_rank[None, :]
        b_dnext = tl.load(p_dnext + b_offset, mask=mask, other=0.0)
        b_dnext += sum_tables(p_dsums, stride, splits, b_sum_offset, PARTS)
        b_dnext += multiply_square(
            p_next, dsquares, b_row, channels, rank, CHUNK, RANK, PARTS, True
        )
        if finish == 0:
            b_q = multiply_square(
                p_bases, squares, b_row, channels, rank, CHUNK, RANK, PARTS, False
            )
            b_scaled = tl.div_rn(b_dnext, tl.where(mask, b_q + eps, 1.0))
            b_bases = tl.load(p_bases + b_offset, mask=mask, other=0.0)
            b_next = tl.load(p_next + b_offset, mask=mask, other=0.0)
            tl.store(p_factor + b_offset, b_scaled * b_bases, mask=mask)
            tl.store(p_dq + b_offset, -(b_scaled * b_next), mask=mask)
            tl.debug_barrier()  # rows of dQ are read by other threads than have written them
            b_dnext = b_scaled * sum_tables(p_sums, stride, splits, b_sum_offset, PARTS)
            b_dnext += multiply_square(
                p_dq, squares, b_row, channels, rank, CHUNK, RANK, PARTS, False
            )
        tl.store(p_dnext + b_offset, b_dnext, mask=mask)
    if finish == 0:
        square = (item * parts + part) * (RANK * RANK)
        tl.debug_barrier()
        store_gram(p_bases, p_dq, p_dgram + square, begin, end, channels, rank, CHUNK, RANK)
        store_gram(p_bases, p_bases, p_gram + square, begin, end, channels, rank, CHUNK, RANK)


def coef_backward_launch(padded: int, inner: bool) -> Launch:
    constants = {"POSITIONS": TILES[padded].positions, "CHUNK": CHUNK, "RANK": padded}
    constants |= {"PARTS": tables_at_once(padded), "INNER": inner}
    return Launch(constants, warps=8, stages=3, registers=255)


def bases_backward_launch(padded: int) -> Launch:
    constants = {"CHUNK": CHUNK, "RANK": padded, "PARTS": tables_at_once(padded)}
    return Launch(constants, warps=8, stages=2, registers=255)


def gradient_cases() -> list[AotCase]:
    """Every compilation of the two kernels that the backward can ask for."""
    cases = []
    maps = ("p_x", "p_bases", "p_gram", "p_coef", "p_next", "p_dnext", "p_factor", "p_dgram")
    coefs = dict.fromkeys((*maps, "p_dcoef", "p_dp", "p_dq"), "fp32")
    maps = ("p_bases", "p_next", "p_dnext", "p_dsums", "p_sums", "p_factor", "p_dq", "p_dgram")
    rows = dict.fromkeys((*maps, "p_gram"), "fp32")
    for padded, inner in product(RANK_CLASSES, (False, True)):
        launch = coef_backward_launch(padded, inner)
        scalars = {"inv_t": "fp32", "eps": "fp32"}
        cases.append(AotCase(nmf_coef_backward_kernel, coefs, launch, scalars))
    for padded in RANK_CLASSES:
        launch = bases_backward_launch(padded)
        cases.append(AotCase(nmf_bases_backward_kernel, rows, launch, {"eps": "fp32"}))
    return cases
