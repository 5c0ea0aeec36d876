"""Triton forward of local_attention: every position attends to a dilated window around it.

Source: Li et al., Global Aggregation then Local Distribution for Scene Parsing (TIP 2021),
section III, eq. (6) and (7).

A tile of positions and its halo are multiplied as dense matrices on tensor cores; the scores of
both, [OWN, MET], stay in registers, so that the softmax needs one pass.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..._layout import empty_map, is_channels_inner
from .._launch import TRITON_DTYPES, AotCase, is_hopper, on_device, refuse_tensor, run
from .._multiples import known_multiple
from .._rare import hidden_zero, rarely
from .inner import copy_cases, copy_maps, needs_copies, padded_copies, padded_map
from .products import channels_of, halo_products, store_window_sums, window_softmax
from .tiles import (
    MAX_NEIGHBOURS,
    UNSPECIALIZED,
    clipped_steps,
    grid_of,
    owned_tile,
    shape_of,
    tile_launch,
    tile_variants,
)


@triton.jit
def attend(
    hidden,
    maps,
    scale,
    channels,
    mask_border,
    cut,
    OWN: tl.constexpr,
    MET: tl.constexpr,
    SCORED: tl.constexpr,
    SUMMED: tl.constexpr,
    KEPT: tl.constexpr,
    EXACT: tl.constexpr,
):
    """The work of one program; returns how many positions got results that are not finite."""
    p_query, p_key, p_value, p_out, p_lse = maps
    key_channels, value_channels = channels
    tile = owned_tile(hidden, cut, OWN, MET)
    keys, values = tile.first * key_channels, tile.first * value_channels
    acc = halo_products(
        p_query + keys, p_key + keys, tile, key_channels, SCORED, KEPT, EXACT, False
    )
    b_weights, b_largest, b_sum = window_softmax(acc, scale, tile, mask_border)
    b_lse = (b_largest + tl.log2(b_sum)) * 0.6931471805599453
    tl.store(p_lse + tile.first + tile.b_own, b_lse, mask=tile.own_inside & (tile.split == 0))
    part = channels_of(tile.split, tile.splits, value_channels, SUMMED)
    return store_window_sums(
        b_weights, 1.0 / b_sum, p_value + values, p_out + values, part, tile, SUMMED, KEPT, EXACT
    )


@triton.jit(do_not_specialize=UNSPECIALIZED)
def local_attention_kernel(
    p_query,
    p_key,
    p_value,
    p_out,
    p_lse,
    scale,
    height,
    width,
    key_channels,
    value_channels,
    rows,
    columns,
    row_step,
    column_step,
    mask_border,
    tile_rows,
    tile_columns,
    splits,
    OWN: tl.constexpr,
    MET: tl.constexpr,
    SCORED: tl.constexpr,
    SUMMED: tl.constexpr,
    MULTIPLE: tl.constexpr,
    KEPT: tl.constexpr,
):
    """out[n] = sum over neighbours of softmax(scale * <query[n], key[neighbour]>) * value of it.

    p_query, p_key [B, positions, Ck], p_value, p_out [B, positions, Cv]; p_lse [B, positions]
    float32.
    Grid: B * phases * tiles * splits (see tiles.py); one program owns a tile of up to OWN positions
    and a share of the value channels, and makes the scores by itself.
    Reads query `splits` times, keys splits * MET / OWN times and values MET / OWN times, all but
    the first time out of the second-level cache; writes out once.
    """
    key_channels = known_multiple(key_channels, MULTIPLE)
    value_channels = known_multiple(value_channels, MULTIPLE)
    maps = (p_query, p_key, p_value, p_out, p_lse)
    channels = (key_channels, value_channels)
    window = (rows, columns, row_step, column_step)
    cut = ((height, width), window, (tile_rows, tile_columns, splits))
    bad = attend(
        0,
        maps,
        scale,
        channels,
        mask_border,
        cut,
        OWN,
        MET,
        SCORED,
        SUMMED,
        KEPT,
        False,
    )
    if rarely(bad > 0):
        tl.debug_barrier()  # the same elements are stored again, by other threads
        attend(
            hidden_zero(1),
            maps,
            scale,
            channels,
            mask_border,
            cut,
            OWN,
            MET,
            SCORED,
            SUMMED,
            KEPT,
            True,
        )


def forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    kernel_size: list[int],
    dilation: list[int],
    scale: float,
    mask_border: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """out [B, Cv, H, W] in the layout of query [B, Ck, H, W], lse [B, H, W] float32."""
    batch, _, height, width = query.shape
    out = empty_map(value.shape, query, is_channels_inner(query))
    lse = query.new_empty((batch, height, width), dtype=torch.float32)
    if lse.numel() == 0:
        return out, lse
    steps = clipped_steps(height, width, dilation)
    grid = grid_of(query.dtype, height, width, *kernel_size, *steps)
    with on_device(query, key, value) as maps:
        copies = needs_copies(query, value)
        rows = padded_copies(maps, 2) if copies else maps
        sums = padded_map(out) if copies else out
        splits = grid.splits(
            batch, triton.cdiv(sums.shape[1], shape_of(query.dtype, grid.met).summed)
        )
        run(
            local_attention_kernel,
            batch * grid.tiles * splits,
            *rows,
            sums,
            lse,
            scale,
            height,
            width,
            rows[0].shape[1],
            rows[2].shape[1],
            *kernel_size,
            *steps,
            int(mask_border),
            grid.rows,
            grid.columns,
            splits,
            launch=tile_launch(query.dtype, grid.met, is_hopper(query)),
        )
        if copies:
            copy_maps([out], [sums], 1, False)
    return out, lse


def refuse(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    kernel_size: list[int],
    *options: object,
) -> str | None:
    """The reason why these kernels cannot run an input, None if they can."""
    rows, columns = kernel_size
    if rows * columns > MAX_NEIGHBOURS:
        return f"triton: {rows}x{columns} neighbours: the kernels hold up to {MAX_NEIGHBOURS}"
    batch, channels, height, width = query.shape
    # Offsets to neighbours far outside the map must fit as well.
    largest = max(batch, *kernel_size, channels, value.shape[1])
    if height * width * largest >= 2**31:
        return "triton: H*W times B, times a side of the kernel, times C must be below 2**31"
    return refuse_tensor(query)


def aot_cases() -> list[AotCase]:
    """Every compilation that `forward` can ask for."""
    cases = copy_cases()
    for dtype, name in TRITON_DTYPES.items():
        pointers = dict.fromkeys(("p_query", "p_key", "p_value", "p_out"), name)
        pointers["p_lse"] = "fp32"
        for launch, generations in tile_variants(dtype):
            case = AotCase(local_attention_kernel, pointers, launch, {"scale": "fp32"}, generations)
            cases.append(case)
    return cases
