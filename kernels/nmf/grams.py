"""Updates of the bases from partial sums, with their Gram matrices, for the backward."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .._launch import AotCase, Launch, run
from .sums import CHUNK, RANK_CLASSES, Group, tables_at_once
from .sums_products import multiply_square, store_gram, sum_tables


@triton.jit(
    do_not_specialize=[
        "channels",
        "rank",
        "rows",
        "square_row",
        "splits",
        "parts",
        "share",
        "keep",
    ],
    do_not_specialize_on_alignment=["p_bases", "p_next"],
)
def nmf_bases_kernel(
    p_bases,
    p_sums,
    p_next,
    p_gram,
    eps,
    channels,
    rank,
    rows,
    square_row,
    splits,
    parts,
    share,
    keep,
    CHUNK: tl.constexpr,
    RANK: tl.constexpr,
    PARTS: tl.constexpr,
):
    """next = bases * P / (bases H + eps), P = x coef, H = coef^T coef; and the Gram matrix of next.

    With `keep` there is no update: the Gram matrix is that of p_next as it is.
    p_bases, p_next [items, D, R]. p_sums [items, splits, rows, RANK]: partial sums of P, and from
    square_row on of H. p_gram [items, parts, RANK, RANK]: partial sums of next^T next.
    Grid: items * parts; one program owns `share` rows of the bases of one item.
    Reads the sums of its rows once, and those of H for every CHUNK rows.
    Source: Geng et al. (ICLR 2021), algorithm 1.
    """
    item = (tl.program_id(0) // parts).to(tl.int64)
    part = tl.program_id(0) % parts
    begin = part * share
    end = tl.minimum(begin + share, channels)
    b_rank = tl.arange(0, RANK)
    p_bases += item * channels * rank
    p_next += item * channels * rank
    p_sums += item * splits * rows * RANK
    squares = (p_sums + square_row * RANK, rows * RANK, splits)
    if keep == 0:
        for row in range(begin, end, CHUNK):
            b_row = row + tl.arange(0, CHUNK)
            mask = (b_row < channels)[:, None] & (b_rank < rank)[None, :]
            b_offset = b_row[:, None] * rank + b_rank[None, :]
            b_p = sum_tables(
                p_sums, rows * RANK, splits, b_row[:, None] * RANK + b_rank[None, :], PARTS
            )
            b_q = multiply_square(
                p_bases, squares, b_row, channels, rank, CHUNK, RANK, PARTS, False
            )
            b_bases = tl.load(p_bases + b_offset, mask=mask, other=0.0)
            tl.store(p_next + b_offset, tl.div_rn(b_bases * b_p, b_q + eps), mask=mask)
        tl.debug_barrier()  # the new rows are read again, by other threads
    p_square = p_gram + (item * parts + part) * (RANK * RANK)
    store_gram(p_next, p_next, p_square, begin, end, channels, rank, CHUNK, RANK)


def bases_launch(padded: int) -> Launch:
    constants = {"CHUNK": CHUNK, "RANK": padded, "PARTS": tables_at_once(padded)}
    return Launch(constants, warps=8, stages=2, registers=255)


def update_bases(
    group: Group,
    bases: torch.Tensor,
    sums: torch.Tensor | None,
    target: torch.Tensor,
    gram: torch.Tensor,
    eps: float,
) -> None:
    """Writes the updated bases and their Gram matrix; without sums the Gram matrix of target."""
    run(
        nmf_bases_kernel,
        group.items * group.parts,
        bases,
        gram if sums is None else sums,
        target,
        gram,
        eps,
        *group.sizes,
        int(sums is None),
        launch=bases_launch(group.padded),
    )


def gram_cases() -> list[AotCase]:
    rows = dict.fromkeys(("p_bases", "p_sums", "p_next", "p_gram"), "fp32")
    launches = map(bases_launch, RANK_CLASSES)
    return [AotCase(nmf_bases_kernel, rows, launch, {"eps": "fp32"}) for launch in launches]
