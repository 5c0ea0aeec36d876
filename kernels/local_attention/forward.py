"""Triton forward of local_attention: every position attends to a dilated window around it.

Source: Li et al., Global Aggregation then Local Distribution for Scene Parsing (TIP 2021),
section III, eq. (6) and (7).

The scores of a tile of positions stay in registers, [positions, neighbours]: no online softmax.
Keys and values are read once a neighbour; positions side by side share them, so all but the first
read of a row come out of the caches.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..._layout import empty_map, is_channels_inner
from .._launch import TRITON_DTYPES, AotCase, on_device, refuse_tensor, run
from .._multiples import known_multiple
from .windows import (
    MAX_NEIGHBOURS,
    UNSPECIALIZED,
    capacity_for,
    multiple_of,
    owned_window,
    store_window_sums,
    window_launch,
    window_products,
    window_softmax,
    window_variants,
)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def local_attention_kernel(
    p_query,
    p_key,
    p_value,
    p_out,
    p_lse,
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
    """out[n] = sum over neighbours of softmax(scale * <query[n], key[neighbour]>) * value of it.

    p_query, p_key [B, Ck, positions], p_value, p_out [B, Cv, positions], or [B, positions, C] with
    INNER; p_lse [B, positions] float32.
    Grid: B * ceil(positions / POSITIONS); one program owns a run of positions of one item.
    Reads the maps about once from memory, once a neighbour out of the caches (query out of L1);
    writes out and lse once.
    """
    batch, window = owned_window(
        positions, height, width, rows, columns, row_step, column_step, POSITIONS
    )
    key_channels = known_multiple(key_channels, MULTIPLE)
    value_channels = known_multiple(value_channels, MULTIPLE)
    key_item, value_item = batch * key_channels * positions, batch * value_channels * positions
    p_query, p_key = p_query + key_item, p_key + key_item
    p_value, p_out = p_value + value_item, p_out + value_item
    b_scores = scale * window_products(
        p_query, p_key, key_channels, window, 1, NEIGHBOURS, CHANNELS, INNER
    )
    b_weights, b_largest, b_sum = window_softmax(b_scores, window, mask_border)
    p_own = p_lse + batch * positions + window.b_position
    tl.store(p_own, b_largest + tl.log(b_sum), mask=window.in_map)
    b_sums = b_weights / b_sum[:, None]
    store_window_sums(b_sums, p_value, p_out, 1.0, value_channels, window, 1, CHANNELS, INNER)


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
    batch, key_channels, height, width = query.shape
    inner = is_channels_inner(query)
    out = empty_map(value.shape, query, inner)
    lse = query.new_empty((batch, height, width), dtype=torch.float32)
    launch = window_launch(capacity_for(*kernel_size), inner, multiple_of((query, value), inner))
    with on_device(query, key, value) as (query, key, value):
        run(
            local_attention_kernel,
            batch * triton.cdiv(height * width, launch.constants["POSITIONS"]),
            query,
            key,
            value,
            out,
            lse,
            scale,
            height * width,
            height,
            width,
            key_channels,
            value.shape[1],
            *kernel_size,
            *clipped_steps(height, width, dilation),
            int(mask_border),
            launch=launch,
        )
    return out, lse


def clipped_steps(height: int, width: int, dilation: list[int]) -> tuple[int, int]:
    """Dilations, as far as they matter: beyond the map every neighbour is outside."""
    return min(dilation[0], height), min(dilation[1], width)


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
    batch, _, height, width = query.shape
    # Offsets to neighbours far outside the map must fit as well.
    if batch * height * width >= 2**31 or height * width * max(kernel_size) >= 2**31:
        return "triton: B*H*W, and H*W times the kernel, must be below 2**31"
    return refuse_tensor(query)


def aot_cases() -> list[AotCase]:
    """Every compilation that `forward` can ask for."""
    cases = []
    for dtype in TRITON_DTYPES.values():
        pointers = dict.fromkeys(("p_query", "p_key", "p_value", "p_out"), dtype)
        pointers["p_lse"] = "fp32"
        for launch in window_variants(dtype):
            cases.append(AotCase(local_attention_kernel, pointers, launch, {"scale": "fp32"}))
    return cases
