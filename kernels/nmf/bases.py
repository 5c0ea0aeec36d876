"""The pass over channels of a step of nmf: partial sums are added up, and bases updated."""

from __future__ import annotations

import triton
import triton.language as tl

from .._multiples import known_multiple
from .products import divide, multiply, multiply_square, ranked


@triton.jit
def add_tables(p_tables, b_element, tables, stride, PARTS: tl.constexpr):
    """The sum of elements of `tables` tables, `stride` apart, in the same order in every run."""
    b_acc = tl.zeros([PARTS, b_element.shape[0]], dtype=tl.float32)
    for start in range(0, tables, PARTS):
        b_table = (start + tl.arange(0, PARTS)).to(tl.int64)[:, None]
        p_element = p_tables + b_table * stride + b_element[None, :]
        b_acc += tl.load(p_element, mask=b_table < tables, other=0.0)
    return tl.sum(b_acc, axis=0)


@triton.jit
def arrive(p_arrived, count):
    """Whether this program is the last of `count`; then what they all have written can be read.

    The number at p_arrived is 0 before the first and after the last one.
    """
    tl.debug_barrier()
    last = tl.atomic_add(p_arrived, 1, sem="acq_rel") == count - 1
    if last:
        tl.store(p_arrived, 0)
    tl.debug_barrier()
    return last


@triton.jit
def store_bases(
    b_bases,
    p_bases,
    p_shares,
    p_gram,
    p_finished,
    part,
    parts,
    width,
    ROWS: tl.constexpr,
    RANK: tl.constexpr,
):
    """ROWS of the bases of an item, and by the last of its parts their Gram matrix.

    b_bases [RANK, ROWS]; p_bases [RANK, width], p_shares [parts, RANK, RANK] scratch, p_gram [RANK,
    RANK].
    """
    b_rank = tl.arange(0, RANK)
    b_channel = part * ROWS + tl.arange(0, ROWS)
    b_square = b_rank[:, None] * RANK + b_rank[None, :]
    tl.store(p_bases + b_rank[:, None] * width + b_channel[None, :], b_bases)
    b_share = multiply(b_bases, tl.trans(b_bases), False, False)
    tl.store(p_shares + part * RANK * RANK + b_square, b_share)
    BLOCK: tl.constexpr = RANK * 16
    if arrive(p_finished, parts):
        for start in range(0, RANK * RANK, BLOCK):
            b_element = start + tl.arange(0, BLOCK)
            tl.store(p_gram + b_element, add_tables(p_shares, b_element, parts, RANK * RANK, 8))


@triton.jit
def update_rows(
    p_totals,
    p_bases,
    p_shares,
    p_gram,
    p_kept,
    p_found,
    p_finished,
    part,
    parts,
    eps,
    channels,
    rank,
    width,
    keeps,
    ends,
    ROWS: tl.constexpr,
    RANK: tl.constexpr,
):
    """A * P / (A H + eps) of ROWS channels of an item; p_totals: P, then H. Else as below."""
    b_rank = tl.arange(0, RANK)
    b_channel = part * ROWS + tl.arange(0, ROWS)
    b_bases = tl.load(p_bases + b_rank[:, None] * width + b_channel[None, :])
    b_q = multiply_square(p_totals + width * RANK, b_bases, RANK, False, 64) + eps
    b_p = tl.load(p_totals + b_channel[None, :] * RANK + b_rank[:, None])
    b_offset, mask = ranked(b_rank, b_channel, channels, rank)
    b_next = tl.where(mask, divide(b_bases * b_p, b_q), 0.0)
    if keeps:
        tl.store(p_kept + b_offset, b_next, mask=mask)
    if ends:
        tl.store(p_found + b_offset, b_next, mask=mask)
    tl.debug_barrier()  # all threads have read the bases that are replaced
    store_bases(b_next, p_bases, p_shares, p_gram, p_finished, part, parts, width, ROWS, RANK)


@triton.jit(do_not_specialize=["channels", "rank", "width", "splits", "parts", "keeps", "ends"])
def nmf_bases_kernel(
    p_sums,
    p_totals,
    p_bases,
    p_shares,
    p_gram,
    p_kept,
    p_found,
    p_arrived,
    eps,
    channels,
    rank,
    width,
    splits,
    parts,
    keeps,
    ends,
    ROWS: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
    MULTIPLE: tl.constexpr,
):
    """A <- A * P / (A H + eps), P = x coef, H = coef^T coef; and the Gram matrix G = A^T A.

    p_sums [items, splits, width + RANK, RANK]: partial sums of P, then of H; p_totals [items, width
    + RANK, RANK]: scratch. p_bases [items, RANK, width]: A, replaced; p_shares [items, parts, RANK,
    RANK]: scratch; p_gram [items, RANK, RANK]. The new A also to p_kept where it `keeps`, and to
    p_found where it `ends`, both [items, D, R], R a multiple of MULTIPLE. p_arrived [items, parts +
    1] int32: zeros.
    Grid: items * (width + RANK) * RANK / BLOCK; one program adds up BLOCK elements of one item's
    sums. The last to finish with H and the sums of ROWS channels updates these channels, and the
    last to do so adds up the Gram matrix: who that is depends on the run, the results do not.
    Reads the sums once.
    Source: Geng et al. (ICLR 2021), algorithm 1.
    """
    rank = known_multiple(rank, MULTIPLE)
    width = known_multiple(width, ROWS)
    table = (width + RANK) * RANK
    blocks = table // BLOCK
    item = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    b_element = block * BLOCK + tl.arange(0, BLOCK)
    p_sums += item * splits * table
    p_totals += item * table
    p_arrived += item * (parts + 1)
    tl.store(p_totals + b_element, add_tables(p_sums, b_element, splits, table, PARTS))
    A_PART: tl.constexpr = ROWS * RANK // BLOCK  # programs
    A_SQUARE: tl.constexpr = RANK * RANK // BLOCK
    first = block // A_PART
    last = first + 1
    if first >= parts:  # of H, which all channels need
        first = 0
        last = parts
    for part in tl.range(first, last, disable_licm=True):
        if arrive(p_arrived + part, A_PART + A_SQUARE):
            update_rows(
                p_totals,
                p_bases + item * RANK * width,
                p_shares + item * parts * RANK * RANK,
                p_gram + item * RANK * RANK,
                p_kept + item * channels * rank,
                p_found + item * channels * rank,
                p_arrived + parts,
                part,
                parts,
                eps,
                channels,
                rank,
                width,
                keeps,
                ends,
                ROWS,
                RANK,
            )


@triton.jit
def gram(p_given, channels, rank, parts, ROWS: tl.constexpr, RANK: tl.constexpr):
    """The Gram matrix [RANK, RANK] of p_given [channels, rank], of `parts` times ROWS channels."""
    b_rank = tl.arange(0, RANK)
    b_gram = tl.zeros([RANK, RANK], dtype=tl.float32)
    for part in range(parts):
        b_channel = part * ROWS + tl.arange(0, ROWS)
        b_offset, mask = ranked(b_rank, b_channel, channels, rank)
        b_bases = tl.load(p_given + b_offset, mask=mask, other=0.0).to(tl.float32)
        b_gram += multiply(b_bases, tl.trans(b_bases), False, False)
    return b_gram


@triton.jit(do_not_specialize=["channels", "rank", "width", "parts"])
def nmf_prepare_kernel(
    p_given,
    p_bases,
    p_gram,
    p_arrived,
    channels,
    rank,
    width,
    parts,
    ROWS: tl.constexpr,
    RANK: tl.constexpr,
    MULTIPLE: tl.constexpr,
):
    """Bases A as the other kernels read them, their Gram matrix, and the counts of 0.

    p_given [items, D, R], R a multiple of MULTIPLE; p_bases [items, RANK, width] float32, zeros
    beyond D and R; p_gram [items, RANK, RANK]: A^T A; p_arrived [items, parts + 1] int32.
    Grid: items * (parts + 1); of an item, the last program owns the Gram matrix, the others ROWS
    channels each. Reads the bases twice.
    """
    rank = known_multiple(rank, MULTIPLE)
    width = known_multiple(width, ROWS)
    item = (tl.program_id(0) // (parts + 1)).to(tl.int64)
    part = tl.program_id(0) % (parts + 1)
    p_given += item * channels * rank
    b_rank = tl.arange(0, RANK)
    tl.store(p_arrived + tl.program_id(0), 0)
    if part < parts:
        b_channel = part * ROWS + tl.arange(0, ROWS)
        b_offset, mask = ranked(b_rank, b_channel, channels, rank)
        b_bases = tl.load(p_given + b_offset, mask=mask, other=0.0).to(tl.float32)
        p_bases += item * RANK * width
        tl.store(p_bases + b_rank[:, None] * width + b_channel[None, :], b_bases)
    else:
        b_gram = gram(p_given, channels, rank, parts, ROWS, RANK)
        tl.store(p_gram + item * RANK * RANK + b_rank[:, None] * RANK + b_rank[None, :], b_gram)
