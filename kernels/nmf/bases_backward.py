"""Back through one update of the bases of nmf.

With A' = A P / Q, P = X C, Q = A H + eps and the gradient dA' of A':

    F = dP = dA' A / Q,  dQ = -dA' A' / Q,  dA = dA' P / Q + dQ H,  dH = A^T dQ

and H = C^T C passes C (dH + dH^T) on. The update of the coefficients that used A' has added X dP +
A' (dG + dG^T) to dA' before (coef_backward.py).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._multiples import known_multiple
from .bases import add_tables, arrive, gram
from .products import divide, multiply, multiply_square, ranked


@triton.jit
def multiply_columns(b_left, b_right, COLUMNS: tl.constexpr):
    """left right^T, in two halves of the columns where there are many: registers."""
    if COLUMNS <= 16:
        return multiply(b_left, tl.trans(b_right), False, False)
    else:
        pairs: tl.constexpr = [b_left.shape[0], COLUMNS // 2, 2]
        b_even, b_odd = tl.split(tl.reshape(b_left, pairs))
        b_right_even, b_right_odd = tl.split(tl.reshape(b_right, pairs))
        b_sum = multiply(b_even, tl.trans(b_right_even), False, False)
        return b_sum + multiply(b_odd, tl.trans(b_right_odd), False, False)


@triton.jit
def back_rows(
    p_dtotals,
    p_totals,
    pointers,
    p_finished,
    part,
    parts,
    eps,
    sizes,
    ends,
    ROWS: tl.constexpr,
    RANK: tl.constexpr,
):
    """The gradient of ROWS channels of an item; pointers: as the kernel has them, of the item."""
    p_bases, p_before, p_state, p_factor, p_kept, p_squares, p_shares, p_dgiven = pointers
    channels, rank, width = sizes
    b_rank = tl.arange(0, RANK)
    b_channel = part * ROWS + tl.arange(0, ROWS)
    b_padded = b_rank[:, None] * width + b_channel[None, :]
    b_total = b_channel[None, :] * RANK + b_rank[:, None]
    b_offset, mask = ranked(b_rank, b_channel, channels, rank)
    b_after = tl.load(p_bases + b_padded)
    p_dgram = p_dtotals + width * RANK
    b_dnext = tl.load(p_state + b_padded) + tl.load(p_dtotals + b_total)
    b_dnext += multiply_square(p_dgram, b_after, RANK, False, 32)
    b_dnext += multiply_square(p_dgram, b_after, RANK, True, 32)
    if ends:
        tl.store(p_dgiven + b_offset, b_dnext, mask=mask)
    else:
        b_before = tl.load(p_before + b_offset, mask=mask, other=0.0)
        b_q = multiply_square(p_totals + width * RANK, b_before, RANK, False, 32) + eps
        b_scaled = divide(tl.where(mask, b_dnext, 0.0), tl.where(mask, b_q, 1.0))
        b_factor = b_scaled * b_before
        tl.store(p_factor + b_padded, b_factor)
        tl.store(p_kept + b_offset, b_factor, mask=mask)
        b_dq = -(b_scaled * b_after)
        b_state = b_scaled * tl.load(p_totals + b_total)
        b_state += multiply_square(p_totals + width * RANK, b_dq, RANK, False, 32)
        tl.debug_barrier()  # all threads have read what is replaced
        tl.store(p_state + b_padded, b_state)
        tl.store(p_bases + b_padded, b_before)
        p_share = p_shares + part * (2 * RANK * RANK)
        p_share += b_rank[:, None] * RANK + b_rank[None, :]
        tl.store(p_share, multiply_columns(b_before, b_before, ROWS))
        b_share = multiply_columns(b_before, b_dq, ROWS)
        b_share += multiply_columns(b_dq, b_before, ROWS)
        tl.store(p_share + RANK * RANK, b_share)
        if arrive(p_finished, parts):
            BLOCK: tl.constexpr = RANK * 16
            for start in tl.range(0, 2 * RANK * RANK, BLOCK, disable_licm=True):
                b_element = start + tl.arange(0, BLOCK)
                b_sum = add_tables(p_shares, b_element, parts, 2 * RANK * RANK, 8)
                tl.store(p_squares + b_element, b_sum)


@triton.jit(do_not_specialize=["channels", "rank", "width", "splits", "parts", "ends"])
def nmf_bases_backward_kernel(
    p_sums,
    p_totals,
    p_bases,
    p_before,
    p_state,
    p_factor,
    p_kept,
    p_squares,
    p_shares,
    p_dgiven,
    p_arrived,
    eps,
    channels,
    rank,
    width,
    splits,
    parts,
    ends,
    ROWS: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
    MULTIPLE: tl.constexpr,
):
    """F = dP and dA of A' = A P / (A H + eps), P = x C, H = C^T C; dH + dH^T, and G = A^T A.

    dA' = state + x dP' + A' (dG + dG^T). Where it `ends`, dA' is all that is wanted.
    p_sums [items, splits, 2, width + RANK, RANK]: partial sums of x dP', dG, P and H; p_totals
    [items, 2, width + RANK, RANK]: scratch. p_bases [items, RANK, width]: A', replaced by A;
    p_before [items, D, R]: A. p_state [items, RANK, width]: replaced by dA. F to p_factor [items,
    RANK, width] and p_kept [items, D, R]; G and dH + dH^T to p_squares [items, 2, RANK, RANK];
    p_shares [items, parts, 2, RANK, RANK]: scratch. p_dgiven [items, D, R]: dA' where it ends. R is
    a multiple of MULTIPLE. p_arrived [items, parts + 1] int32: zeros.
    Grid: items * 2 * (width + RANK) * RANK / BLOCK; one program adds up BLOCK elements of the sums
    of one item. The last to finish with dG, H and the sums of ROWS channels goes on with these,
    and the last to do so adds up the shares: who that is depends on the run, the results do not.
    Reads the sums once.
    """
    rank = known_multiple(rank, MULTIPLE)
    width = known_multiple(width, ROWS)
    table = (width + RANK) * RANK
    blocks = table // BLOCK
    item = (tl.program_id(0) // (2 * blocks)).to(tl.int64)
    block = tl.program_id(0) % (2 * blocks)
    b_element = block * BLOCK + tl.arange(0, BLOCK)
    p_sums += item * splits * (2 * table)
    p_totals += item * (2 * table)
    p_arrived += item * (parts + 1)
    tl.store(p_totals + b_element, add_tables(p_sums, b_element, splits, 2 * table, PARTS))
    of_padded = item * RANK * width
    of_bases = item * channels * rank
    pointers = (
        p_bases + of_padded,
        p_before + of_bases,
        p_state + of_padded,
        p_factor + of_padded,
        p_kept + of_bases,
        p_squares + item * (2 * RANK * RANK),
        p_shares + item * parts * (2 * RANK * RANK),
        p_dgiven + of_bases,
    )
    A_PART: tl.constexpr = 2 * ROWS * RANK // BLOCK  # programs
    A_SQUARE: tl.constexpr = 2 * RANK * RANK // BLOCK
    first = (block % blocks) * BLOCK // (ROWS * RANK)
    last = first + 1
    if first >= parts:  # of dG or H, which all channels need
        first = 0
        last = parts
    for part in tl.range(first, last, disable_licm=True):
        if arrive(p_arrived + part, A_PART + A_SQUARE):
            back_rows(
                p_totals,
                p_totals + table,
                pointers,
                p_arrived + parts,
                part,
                parts,
                eps,
                (channels, rank, width),
                ends,
                ROWS,
                RANK,
            )


@triton.jit(do_not_specialize=["channels", "rank", "width", "parts", "has_grad"])
def nmf_prepare_backward_kernel(
    p_given,
    p_last,
    p_grad,
    p_first,
    p_bases,
    p_squares,
    p_state,
    p_factor,
    p_arrived,
    channels,
    rank,
    width,
    parts,
    has_grad,
    ROWS: tl.constexpr,
    RANK: tl.constexpr,
    MULTIPLE: tl.constexpr,
):
    """What the other kernels start from: the last bases A and the given ones, and zeros.

    p_given, p_grad (read where it `has_grad`, else 0) [items, D, R], R a multiple of MULTIPLE;
    p_last [items, D, R] float32: A. p_first [items, D, R]: the given bases in float32; p_bases
    [items, RANK, width]: A, zeros beyond D and R; p_squares [items, 2, RANK, RANK]: A^T A and
    zeros; p_state [items, RANK, width]: the gradient of A. Zeros: p_factor [items, RANK, width],
    p_arrived [items, parts + 1] int32.
    Grid: items * (parts + 1); of an item, the last program owns the squares, the others ROWS
    channels each.
    """
    rank = known_multiple(rank, MULTIPLE)
    width = known_multiple(width, ROWS)
    item = (tl.program_id(0) // (parts + 1)).to(tl.int64)
    part = tl.program_id(0) % (parts + 1)
    b_rank = tl.arange(0, RANK)
    of_bases = item * channels * rank
    tl.store(p_arrived + tl.program_id(0), 0)
    if part < parts:
        b_channel = part * ROWS + tl.arange(0, ROWS)
        b_offset, mask = ranked(b_rank, b_channel, channels, rank)
        b_offset += of_bases
        b_padded = item * RANK * width + b_rank[:, None] * width + b_channel[None, :]
        b_given = tl.load(p_given + b_offset, mask=mask, other=0.0).to(tl.float32)
        tl.store(p_first + b_offset, b_given, mask=mask)
        b_state = tl.zeros([RANK, ROWS], dtype=tl.float32)
        if has_grad:
            b_state = tl.load(p_grad + b_offset, mask=mask, other=0.0).to(tl.float32)
        tl.store(p_state + b_padded, b_state)
        tl.store(p_factor + b_padded, tl.zeros([RANK, ROWS], dtype=tl.float32))
        tl.store(p_bases + b_padded, tl.load(p_last + b_offset, mask=mask, other=0.0))
    else:
        b_square = item * (2 * RANK * RANK) + b_rank[:, None] * RANK + b_rank[None, :]
        b_gram = gram(p_last + of_bases, channels, rank, parts, ROWS, RANK)
        tl.store(p_squares + b_square, b_gram)
        b_zero = tl.zeros([RANK, RANK], dtype=tl.float32)
        tl.store(p_squares + RANK * RANK + b_square, b_zero)
