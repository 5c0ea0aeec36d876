"""Triton backward of local_attention, by gathering on both sides: no atomics.

Weights are computed again. The first kernel works at queries and leaves three numbers a position
for the second, which works at keys and gathers from the queries that see them. Subtracting the
saved log-sum-exp from scores of a few hundred would cost the weights most of their digits, so the
softmax is done over: its largest score and sum are two of the numbers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..._layout import empty_map, is_channels_inner
from .._launch import TRITON_DTYPES, AotCase, is_hopper, on_device, run
from .._multiples import known_multiple
from .._rare import hidden_zero, rarely
from .inner import copy_maps, needs_copies, padded_copies, padded_map
from .products import LOG2_E, channels_of, halo_products, store_window_sums, window_softmax
from .tiles import (
    UNSPECIALIZED,
    clipped_steps,
    grid_of,
    owned_tile,
    shape_of,
    tile_launch,
    tile_variants,
    windows,
)

# Stages of the loops in float32, on Hopper and elsewhere: what is copied ahead takes registers.
QUERY_STAGES: dict[bool, int | None] = {True: 1, False: 1}
KEY_STAGES: dict[bool, int | None] = {True: None, False: 1}


@triton.jit
def query_gradient(
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
    """The work of a program of query_gradient_kernel; returns how many of its positions have
    results that are not finite."""
    p_grad, p_query, p_key, p_value, p_out, p_statistics = maps
    key_channels, value_channels = channels
    tile = owned_tile(hidden, cut, OWN, MET)
    keys, values = tile.first * key_channels, tile.first * value_channels
    acc = halo_products(
        p_query + keys, p_key + keys, tile, key_channels, SCORED, KEPT, EXACT, False
    )
    b_weights, b_largest, b_sum = window_softmax(acc, scale, tile, mask_border)
    b_inverse = 1.0 / b_sum
    p_own = p_statistics + tile.first + tile.b_own
    stored = tile.own_inside & (tile.split == 0)
    tl.store(p_own, b_largest, mask=stored)
    tl.store(p_own + tile.positions, b_inverse, mask=stored)
    acc = halo_products(
        p_grad + values, p_value + values, tile, value_channels, SCORED, KEPT, EXACT, False
    )
    # Outside the window a product may be infinite, and its weight of zero would not undo that.
    acc = tl.where(windows(tile, False, hidden_zero(4)), acc, 0.0)
    b_delta = tl.sum(b_weights * acc, axis=1) * b_inverse
    p_own = p_statistics + 2 * tile.positions + tile.first + tile.b_own
    tl.store(p_own, b_delta, mask=tile.own_inside & (tile.split == 0))
    b_dscores = b_weights * (acc - b_delta[:, None])
    part = channels_of(tile.split, tile.splits, key_channels, SUMMED)
    b_factor = scale * b_inverse
    return store_window_sums(
        b_dscores, b_factor, p_key + keys, p_out + keys, part, tile, SUMMED, KEPT, EXACT
    )


@triton.jit(do_not_specialize=UNSPECIALIZED)
def query_gradient_kernel(
    p_grad,
    p_query,
    p_key,
    p_value,
    p_out,
    p_statistics,
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
    """dquery[n] = scale * sum over neighbours of ds * key, ds = p * (dp - sum of p * dp).

    p = softmax(scale * <query[n], key[neighbour]>), dp = <grad[n], value[neighbour]>. p_query,
    p_key, p_out [B, positions, Ck], p_grad, p_value [B, positions, Cv]; p_statistics
    [3, B * positions] float32: largest score in powers of two, 1 / sum, sum of p * dp.
    Grid: B * phases * tiles * splits (see tiles.py); one program owns a tile of up to OWN positions
    and a share of the key channels, and makes the scores by itself.
    Reads query and grad `splits` times, and of keys splits + 1 and of values `splits` times
    MET / OWN as much, all but the first time out of the second-level cache; writes dquery once.
    """
    key_channels = known_multiple(key_channels, MULTIPLE)
    value_channels = known_multiple(value_channels, MULTIPLE)
    channels = (key_channels, value_channels)
    window = (rows, columns, row_step, column_step)
    cut = ((height, width), window, (tile_rows, tile_columns, splits))
    maps = (p_grad, p_query, p_key, p_value, p_out, p_statistics)
    bad = query_gradient(
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
        query_gradient(
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


@triton.jit
def key_gradient(
    hidden,
    maps,
    scale,
    channels,
    value_splits,
    cut,
    OWN: tl.constexpr,
    MET: tl.constexpr,
    SCORED: tl.constexpr,
    SUMMED: tl.constexpr,
    KEPT: tl.constexpr,
    EXACT: tl.constexpr,
):
    """The work of a program of key_gradient_kernel; returns how many of its positions have
    results that are not finite."""
    p_grad, p_query, p_key, p_value, p_dkey, p_dvalue, p_statistics = maps
    key_channels, value_channels = channels
    tile = owned_tile(hidden, cut, OWN, MET)
    keys, values = tile.first * key_channels, tile.first * value_channels
    acc = halo_products(p_key + keys, p_query + keys, tile, key_channels, SCORED, KEPT, EXACT, True)
    p_met = p_statistics + tile.first + tile.b_met
    b_largest = tl.load(p_met, mask=tile.met_inside, other=0.0)
    b_inverse = tl.load(p_met + tile.positions, mask=tile.met_inside, other=0.0)
    b_weights = tl.exp2(acc * (scale * LOG2_E) - b_largest[None, :]) * b_inverse[None, :]
    p_other, p_out = p_grad + values, p_dvalue + values
    out_channels, factor = value_channels, 1.0
    number, parts = tile.split, value_splits
    if tile.split >= value_splits:
        acc = halo_products(
            p_value + values, p_grad + values, tile, value_channels, SCORED, KEPT, EXACT, True
        )
        b_delta = tl.load(p_met + 2 * tile.positions, mask=tile.met_inside, other=0.0)
        b_weights = b_weights * (acc - b_delta[None, :])
        p_other, p_out = p_query + keys, p_dkey + keys
        out_channels, factor = key_channels, scale
        number, parts = number - value_splits, tile.splits - value_splits
    b_weights = tl.where(windows(tile, True, hidden_zero(2)), b_weights, 0.0)
    part = channels_of(number, parts, out_channels, SUMMED)
    b_factor = tl.full([OWN], factor, tl.float32)
    return store_window_sums(b_weights, b_factor, p_other, p_out, part, tile, SUMMED, KEPT, EXACT)


@triton.jit(do_not_specialize=[*UNSPECIALIZED, "value_splits"])
def key_gradient_kernel(
    p_grad,
    p_query,
    p_key,
    p_value,
    p_dkey,
    p_dvalue,
    p_statistics,
    scale,
    height,
    width,
    key_channels,
    value_channels,
    rows,
    columns,
    row_step,
    column_step,
    tile_rows,
    tile_columns,
    splits,
    value_splits,
    OWN: tl.constexpr,
    MET: tl.constexpr,
    SCORED: tl.constexpr,
    SUMMED: tl.constexpr,
    MULTIPLE: tl.constexpr,
    KEPT: tl.constexpr,
):
    """dkey[n] = scale * sum of ds * query[m], dvalue[n] = sum of p * grad[m], over the queries m
    that have n in their windows.

    Pointers and grid as in query_gradient_kernel, whose statistics are read; p_dkey like p_key,
    p_dvalue like p_value. Of a tile's programs the first `value_splits` share the channels of
    dvalue and need p alone, the others those of dkey. The border does not matter: only queries
    inside the map are met.
    """
    key_channels = known_multiple(key_channels, MULTIPLE)
    value_channels = known_multiple(value_channels, MULTIPLE)
    channels = (key_channels, value_channels)
    window = (rows, columns, row_step, column_step)
    cut = ((height, width), window, (tile_rows, tile_columns, splits))
    maps = (p_grad, p_query, p_key, p_value, p_dkey, p_dvalue, p_statistics)
    bad = key_gradient(
        0,
        maps,
        scale,
        channels,
        value_splits,
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
        key_gradient(
            hidden_zero(1),
            maps,
            scale,
            channels,
            value_splits,
            cut,
            OWN,
            MET,
            SCORED,
            SUMMED,
            KEPT,
            True,
        )


def backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lse: torch.Tensor,
    kernel_size: list[int],
    dilation: list[int],
    scale: float,
    mask_border: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """dquery, dkey [B, Ck, H, W] and dvalue [B, Cv, H, W] in the layout of query."""
    batch, _, height, width = query.shape
    inner = is_channels_inner(query)
    outs = [empty_map(x.shape, query, inner) for x in (query, key, value)]
    if lse.numel() == 0:
        return tuple(outs)
    statistics = query.new_empty((3, batch, height, width), dtype=torch.float32)
    steps = clipped_steps(height, width, dilation)
    grid = grid_of(query.dtype, height, width, *kernel_size, *steps)
    hopper = is_hopper(query)
    with on_device(query, key, grad, value) as maps:
        copies = needs_copies(query, value)
        query, key, grad, value = padded_copies(maps, 2) if copies else maps
        dquery, dkey, dvalue = map(padded_map, outs) if copies else outs
        summed = shape_of(query.dtype, grid.met).summed
        key_splits, value_splits = (
            grid.splits(batch, triton.cdiv(x.shape[1], summed)) for x in (key, value)
        )
        sizes = (scale, height, width, key.shape[1], value.shape[1], *kernel_size, *steps)
        run(
            query_gradient_kernel,
            batch * grid.tiles * key_splits,
            grad,
            query,
            key,
            value,
            dquery,
            statistics,
            *sizes,
            int(mask_border),
            grid.rows,
            grid.columns,
            key_splits,
            launch=tile_launch(query.dtype, grid.met, hopper, QUERY_STAGES[hopper]),
        )
        # Two programs share a tile anyway: one for dvalue, one for dkey.
        value_splits = triton.cdiv(value_splits, 2)
        splits = value_splits + triton.cdiv(key_splits, 2)
        run(
            key_gradient_kernel,
            batch * grid.tiles * splits,
            grad,
            query,
            key,
            value,
            dkey,
            dvalue,
            statistics,
            *sizes,
            grid.rows,
            grid.columns,
            splits,
            value_splits,
            launch=tile_launch(query.dtype, grid.met, hopper, KEY_STAGES[hopper]),
        )
        if copies:
            copy_maps(outs, [dquery, dkey, dvalue], 2, False)
    return tuple(outs)


def aot_cases() -> list[AotCase]:
    """Every compilation that `backward` can ask for, beside the copies of contiguous maps."""
    cases = []
    for dtype, name in TRITON_DTYPES.items():
        maps = dict.fromkeys(("p_grad", "p_query", "p_key", "p_value"), name)
        maps["p_statistics"] = "fp32"
        for kernel, outputs, stages in (
            (query_gradient_kernel, ("p_out",), QUERY_STAGES),
            (key_gradient_kernel, ("p_dkey", "p_dvalue"), KEY_STAGES),
        ):
            pointers = maps | dict.fromkeys(outputs, name)
            for launch, generations in tile_variants(dtype, stages):
                case = AotCase(kernel, pointers, launch, {"scale": "fp32"}, generations)
                cases.append(case)
    return cases
