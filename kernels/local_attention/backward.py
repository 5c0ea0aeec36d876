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
from .._launch import TRITON_DTYPES, AotCase, on_device, run
from .._multiples import known_multiple
from .forward import clipped_steps
from .windows import (
    UNSPECIALIZED,
    capacity_for,
    multiple_of,
    owned_window,
    store_window_sums,
    whole_windows,
    window_launch,
    window_products,
    window_softmax,
    window_variants,
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
    positions,
    height,
    width,
    key_channels,
    value_channels,
    rows,
    columns,
    row_step,
    column_step,
    mask_border,
    POSITIONS: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
    CHANNELS: tl.constexpr,
    INNER: tl.constexpr,
    MULTIPLE: tl.constexpr,
):
    """dquery[n] = scale * sum over neighbours of ds * key, ds = p * (dp - sum of p * dp).

    p = softmax(scale * <query[n], key[neighbour]>), dp = <grad[n], value[neighbour]>. p_query,
    p_key, p_out [B, Ck, positions], p_grad, p_value [B, Cv, positions], or [B, positions, C] with
    INNER; p_statistics [3, B * positions] float32: largest score, 1 / sum, sum of p * dp.
    Grid: B * ceil(positions / POSITIONS); one program owns a run of positions of one item.
    Reads the maps about once from memory, once a neighbour out of the caches; writes dquery once.
    """
    batch, window = owned_window(
        positions, height, width, rows, columns, row_step, column_step, POSITIONS
    )
    items = (tl.num_programs(0) // tl.cdiv(positions, POSITIONS)).to(tl.int64)
    key_channels = known_multiple(key_channels, MULTIPLE)
    value_channels = known_multiple(value_channels, MULTIPLE)
    key_item, value_item = batch * key_channels * positions, batch * value_channels * positions
    p_query, p_key, p_out = p_query + key_item, p_key + key_item, p_out + key_item
    p_grad, p_value = p_grad + value_item, p_value + value_item
    b_scores = scale * window_products(
        p_query, p_key, key_channels, window, 1, NEIGHBOURS, CHANNELS, INNER
    )
    b_weights, b_largest, b_sum = window_softmax(b_scores, window, mask_border)
    b_weights = b_weights / b_sum[:, None]
    b_dweights = window_products(
        p_grad, p_value, value_channels, window, 1, NEIGHBOURS, CHANNELS, INNER
    )
    b_delta = tl.sum(b_weights * b_dweights, axis=1)
    p_own = p_statistics + batch * positions + window.b_position
    tl.store(p_own, b_largest, mask=window.in_map)
    tl.store(p_own + items * positions, 1.0 / b_sum, mask=window.in_map)
    tl.store(p_own + 2 * items * positions, b_delta, mask=window.in_map)
    b_sums = b_weights * (b_dweights - b_delta[:, None])
    store_window_sums(b_sums, p_key, p_out, scale, key_channels, window, 1, CHANNELS, INNER)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def key_gradient_kernel(
    p_grad,
    p_query,
    p_key,
    p_value,
    p_dkey,
    p_dvalue,
    p_statistics,
    scale,
    positions,
    height,
    width,
    key_channels,
    value_channels,
    rows,
    columns,
    row_step,
    column_step,
    mask_border,
    POSITIONS: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
    CHANNELS: tl.constexpr,
    INNER: tl.constexpr,
    MULTIPLE: tl.constexpr,
):
    """dkey[n] = scale * sum of ds * query[m], dvalue[n] = sum of p * grad[m], over the queries m
    that have n in their windows.

    Pointers and grid as in query_gradient_kernel, whose statistics are read; p_dkey like p_key,
    p_dvalue like p_value. mask_border does not matter: only queries inside the map are met.
    Reads the maps about once from memory, once a neighbour out of the caches; writes both
    gradients once.
    """
    batch, window = owned_window(
        positions, height, width, rows, columns, row_step, column_step, POSITIONS
    )
    items = (tl.num_programs(0) // tl.cdiv(positions, POSITIONS)).to(tl.int64)
    key_channels = known_multiple(key_channels, MULTIPLE)
    value_channels = known_multiple(value_channels, MULTIPLE)
    key_item, value_item = batch * key_channels * positions, batch * value_channels * positions
    p_query, p_key, p_dkey = p_query + key_item, p_key + key_item, p_dkey + key_item
    p_grad, p_value, p_dvalue = p_grad + value_item, p_value + value_item, p_dvalue + value_item

    b_query, inside, in_window = whole_windows(window, -1, NEIGHBOURS)
    seen = window.in_map[:, None] & in_window[None, :] & inside
    p_other = p_statistics + batch * positions + b_query
    b_scores = scale * window_products(
        p_key, p_query, key_channels, window, -1, NEIGHBOURS, CHANNELS, INNER
    )
    b_largest = tl.load(p_other, mask=seen, other=0.0)
    b_inverse = tl.load(p_other + items * positions, mask=seen, other=0.0)
    b_weights = tl.where(seen, tl.exp(b_scores - b_largest) * b_inverse, 0.0)
    store_window_sums(b_weights, p_grad, p_dvalue, 1.0, value_channels, window, -1, CHANNELS, INNER)
    b_dweights = window_products(
        p_value, p_grad, value_channels, window, -1, NEIGHBOURS, CHANNELS, INNER
    )
    b_delta = tl.load(p_other + 2 * items * positions, mask=seen, other=0.0)
    b_sums = tl.where(seen, b_weights * (b_dweights - b_delta), 0.0)
    store_window_sums(b_sums, p_query, p_dkey, scale, key_channels, window, -1, CHANNELS, INNER)


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
    batch, key_channels, height, width = query.shape
    inner = is_channels_inner(query)
    dquery, dkey, dvalue = (empty_map(x.shape, query, inner) for x in (query, key, value))
    statistics = query.new_empty((3, batch, height, width), dtype=torch.float32)
    multiple = multiple_of((query, value), inner)
    launch = window_launch(capacity_for(*kernel_size), inner, multiple, backward=True)
    sizes = (
        scale,
        height * width,
        height,
        width,
        key_channels,
        value.shape[1],
        *kernel_size,
        *clipped_steps(height, width, dilation),
        int(mask_border),
    )
    programs = batch * triton.cdiv(height * width, launch.constants["POSITIONS"])
    with on_device(grad, query, key, value) as maps:
        run(query_gradient_kernel, programs, *maps, dquery, statistics, *sizes, launch=launch)
        run(key_gradient_kernel, programs, *maps, dkey, dvalue, statistics, *sizes, launch=launch)
    return dquery, dkey, dvalue


def aot_cases() -> list[AotCase]:
    """Every compilation that `backward` can ask for."""
    cases = []
    for dtype in TRITON_DTYPES.values():
        maps = dict.fromkeys(("p_grad", "p_query", "p_key", "p_value"), dtype)
        maps["p_statistics"] = "fp32"
        for launch in window_variants(dtype, backward=True):
            for kernel, outputs in (
                (query_gradient_kernel, ("p_out",)),
                (key_gradient_kernel, ("p_dkey", "p_dvalue")),
            ):
                pointers = maps | dict.fromkeys(outputs, dtype)
                cases.append(AotCase(kernel, pointers, launch, {"scale": "fp32"}))
    return cases
