"""Triton forward of nmf: multiplicative updates of coefficients and bases.

Source: Geng et al., Is Attention Better Than Matrix Decomposition? (ICLR 2021), algorithm 1.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..._layout import is_channels_inner
from ...nmf import RECORD_ALL, RECORD_LAST, RECORD_NOTHING
from .._launch import AotCase, Launch, device_guard, refuse_tensor, run
from .products import multiply_square, project_positions, store_gram, sum_tables
from .sums import (
    CHUNK,
    MAX_RANK,
    RANK_CLASSES,
    TILES,
    Group,
    groups_of,
    sums_cases,
    tables_at_once,
)


@triton.jit(
    do_not_specialize=[
        "positions",
        "channels",
        "rank",
        "first_tile",
        "tiles",
        "parts",
        "begins",
    ],
    do_not_specialize_on_alignment=["p_x", "p_bases", "p_coef", "p_next"],
)
def nmf_coef_kernel(
    p_x,
    p_bases,
    p_gram,
    p_coef,
    p_next,
    inv_t,
    eps,
    positions,
    channels,
    rank,
    first_tile,
    tiles,
    parts,
    begins,
    POSITIONS: tl.constexpr,
    CHUNK: tl.constexpr,
    RANK: tl.constexpr,
    PARTS: tl.constexpr,
    INNER: tl.constexpr,
):
    """next = coef * P / (coef G + eps), P = x^T bases, G = bases^T bases.

    With `begins`, coef = softmax(inv_t P) is computed and written first.
    p_x [items, D, N]: contiguous, or with INNER the channel index fastest. p_bases [items, D, R],
    p_gram [items, parts, RANK, RANK]: partial sums of G. p_coef, p_next [items, N, R].
    Grid: items * tiles; one program owns POSITIONS positions of one item, the slab being `tiles`
    tiles from first_tile on.
    Reads x and the coefficients once and writes the coefficients once; the bases, D * R elements a
    program, come out of the level-2 cache.
    Source: Geng et al. (ICLR 2021), algorithm 1.
    """
    item = (tl.program_id(0) // tiles).to(tl.int64)
    b_position = (first_tile + tl.program_id(0) % tiles) * POSITIONS + tl.arange(0, POSITIONS)
    b_rank = tl.arange(0, RANK)
    in_rank = (b_rank < rank)[None, :]
    mask = (b_position < positions)[:, None] & in_rank
    p_coef += item * positions * rank
    p_next += item * positions * rank
    b_offset = b_position.to(tl.int64)[:, None] * rank + b_rank[None, :]

    p_x += item * channels * positions
    p_bases += item * channels * rank
    grams = (p_gram + item * parts * (RANK * RANK), RANK * RANK, parts)
    b_p = project_positions(p_x, p_bases, b_position, positions, channels, rank, CHUNK, RANK, INNER)
    if begins:
        scores = tl.where(in_rank, b_p * inv_t, float("-inf"))
        weight = tl.exp(scores - tl.max(scores, axis=1)[:, None])
        b_coef = tl.div_rn(weight, tl.broadcast_to(tl.sum(weight, axis=1)[:, None], weight.shape))
        tl.store(p_coef + b_offset, b_coef, mask=mask)
        tl.debug_barrier()  # rows are read again below, by other threads
    else:
        b_coef = tl.load(p_coef + b_offset, mask=mask, other=0.0)
    b_q = multiply_square(p_coef, grams, b_position, positions, rank, CHUNK, RANK, PARTS, False)
    tl.store(p_next + b_offset, tl.div_rn(b_coef * b_p, b_q + eps), mask=mask)


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


def coef_launch(padded: int, inner: bool) -> Launch:
    tile = TILES[padded]
    constants = {"POSITIONS": tile.positions, "CHUNK": CHUNK, "RANK": padded}
    constants |= {"PARTS": tables_at_once(padded), "INNER": inner}
    return Launch(constants, tile.warps, stages=3, registers=255)


def bases_launch(padded: int) -> Launch:
    constants = {"CHUNK": CHUNK, "RANK": padded, "PARTS": tables_at_once(padded)}
    return Launch(constants, warps=8, stages=2, registers=255)


def update_coef(
    group: Group,
    x: torch.Tensor,
    bases: torch.Tensor,
    gram: torch.Tensor,
    coef: torch.Tensor,
    target: torch.Tensor,
    slab: tuple[int, int],
    options: tuple[float, float, bool],
) -> None:
    """Writes the updated coefficients of a slab; options: inv_t, eps, whether coef is to be set."""
    inv_t, eps, begins = options
    run(
        nmf_coef_kernel,
        group.items * group.tiles_of(slab),
        x,
        bases,
        gram,
        coef,
        target,
        inv_t,
        eps,
        *group.slab_sizes(slab),
        int(begins),
        launch=coef_launch(group.padded, group.inner),
    )


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


def forward(
    x: torch.Tensor,
    bases: torch.Tensor,
    steps: int,
    inv_t: float,
    eps: float,
    one_step: bool,
    record: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The last bases and coefficients, and what `record` asks to keep of them in float32."""
    batch, channels, positions = x.shape
    rank = bases.shape[2]
    found = torch.empty_like(bases)
    coef = x.new_empty(batch, positions, rank)
    past_bases, past_coef = (x.new_empty(0, dtype=torch.float32) for _ in range(2))
    if record != RECORD_NOTHING:
        kept_bases, kept_coef = (steps, steps + 2) if record == RECORD_ALL else (1, 1)
        past_bases = past_bases.new_empty(kept_bases, batch, channels, rank)
        past_coef = past_coef.new_empty(kept_coef, batch, positions, rank)
    with device_guard(x):
        for items, x_, group in groups_of(x, rank, is_channels_inner(x)):
            bases_ = bases[items].float()
            gram = group.new_squares(x_)
            sums = group.new_sums(x_)
            if record == RECORD_ALL:
                all_bases, all_coef = past_bases[:, items], past_coef[:, items]
            else:
                all_bases = x_.new_empty(min(steps, 2), *bases_.shape)
                all_coef = x_.new_empty(2, group.items, positions, rank)
            update_bases(group, bases_, None, bases_, gram, eps)
            for step in range(steps + 1):
                old, new = (all_coef[i % len(all_coef)] for i in (step, step + 1))
                for slab in group.slabs():
                    options = (inv_t, eps, step == 0)
                    update_coef(group, x_, bases_, gram, old, new, slab, options)
                    if step < steps:
                        group.sum_slab(x_, new, new, new, sums, slab)
                if step < steps:
                    target = all_bases[step % len(all_bases)]
                    update_bases(group, bases_, sums, target, gram, eps)
                    bases_ = target
            found[items] = bases_
            coef[items] = new
            if record == RECORD_LAST:
                past_bases[0, items] = bases_
                past_coef[0, items] = old
    return found, coef, past_bases, past_coef


def refuse(x: torch.Tensor, bases: torch.Tensor, *options: object) -> str | None:
    """The reason why these kernels cannot run an input, None if they can."""
    if bases.shape[2] > MAX_RANK:
        return f"triton: R={bases.shape[2]} bases: the fused kernels hold up to {MAX_RANK}"
    if x.shape[0] * x.shape[2] >= 2**31:
        return "triton: B*N positions must be fewer than 2**31"
    if x.shape[1] >= 2**23:
        return "triton: D must be below 2**23"  # tables of sums have fewer than 2**31 elements
    return refuse_tensor(x)


def aot_cases() -> list[AotCase]:
    """Every compilation that `forward` can ask for."""
    cases = sums_cases()
    coefs = dict.fromkeys(("p_x", "p_bases", "p_gram", "p_coef", "p_next"), "fp32")
    rows = dict.fromkeys(("p_bases", "p_sums", "p_next", "p_gram"), "fp32")
    for padded in RANK_CLASSES:
        for inner in (False, True):
            scalars = {"inv_t": "fp32", "eps": "fp32"}
            cases.append(AotCase(nmf_coef_kernel, coefs, coef_launch(padded, inner), scalars))
        cases.append(AotCase(nmf_bases_kernel, rows, bases_launch(padded), {"eps": "fp32"}))
    return cases
