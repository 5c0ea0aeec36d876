"""Triton forward of local_attention: every position attends to a dilated window around it.

Source: Li et al., Global Aggregation then Local Distribution for Scene Parsing (TIP 2021),
section III, eq. (6) and (7).

The scores of a tile of positions stay in registers, [positions, taps]: no online softmax. Keys and
values are read once a tap; neighbouring positions share them, so all but the first read of a row
come out of the caches.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..._layout import empty_map, is_channels_inner
from .._launch import (
    TRITON_DTYPES,
    AotCase,
    aligned_storage,
    device_guard,
    known_multiple,
    refuse_tensor,
    run,
)
from .windows import (
    MAX_TAPS,
    UNSPECIALIZED,
    multiple_of,
    store_window_sums,
    tap_capacity,
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
    TAPS: tl.constexpr,
    CHANNELS: tl.constexpr,
    INNER: tl.constexpr,
    MULTIPLE: tl.constexpr,
):
    """out[n] = sum over taps of softmax(scale * <query[n], key[neighbour]>) * value[neighbour].

    p_query, p_key [B, Ck, positions], p_value, p_out [B, Cv, positions], or [B, positions, C] with
    INNER; p_lse [B, positions] float32.
    Grid: B * ceil(positions / POSITIONS); one program owns a run of positions of one item.
    Reads query taps times out of L1, keys and values taps times out of L1 and L2, and each of the
    maps about once from memory; writes out and lse once.
    """
    tiles = tl.cdiv(positions, POSITIONS)
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    b_position = (tl.program_id(0) % tiles) * POSITIONS + tl.arange(0, POSITIONS)
    in_map = b_position < positions
    if INNER:
        key_channels = known_multiple(key_channels, MULTIPLE)
        value_channels = known_multiple(value_channels, MULTIPLE)
    key_item = batch * key_channels * positions
    value_item = batch * value_channels * positions
    b_scores = scale * window_products(
        p_query + key_item,
        p_key + key_item,
        b_position,
        in_map,
        key_channels,
        positions,
        height,
        width,
        rows,
        columns,
        row_step,
        column_step,
        1,
        TAPS,
        CHANNELS,
        INNER,
    )
    b_weights, b_largest, b_sum = window_softmax(
        b_scores,
        b_position,
        height,
        width,
        rows,
        columns,
        row_step,
        column_step,
        mask_border,
        TAPS,
    )
    tl.store(p_lse + batch * positions + b_position, b_largest + tl.log(b_sum), mask=in_map)
    store_window_sums(
        b_weights / b_sum[:, None],
        p_value + value_item,
        p_out + value_item,
        1.0,
        b_position,
        in_map,
        value_channels,
        positions,
        height,
        width,
        rows,
        columns,
        row_step,
        column_step,
        1,
        TAPS,
        CHANNELS,
        INNER,
    )


def forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    kernel: list[int],
    dilation: list[int],
    scale: float,
    mask: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """out [B, Cv, H, W] in the layout of query [B, Ck, H, W], lse [B, H, W] float32."""
    batch, key_channels, height, width = query.shape
    inner = is_channels_inner(query)
    query, key, value = map(aligned_storage, (query, key, value))
    out = empty_map(value.shape, query, inner)
    lse = query.new_empty((batch, height, width), dtype=torch.float32)
    launch = window_launch(tap_capacity(*kernel), inner, multiple_of((query, value), inner))
    with device_guard(query):
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
            *kernel,
            *clipped_steps(height, width, dilation),
            int(mask),
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
    kernel: list[int],
    dilation: list[int],
    scale: float,
    mask: bool,
) -> str | None:
    """The reason why these kernels cannot run an input, None if they can."""
    if kernel[0] * kernel[1] > MAX_TAPS:
        return f"triton: {kernel[0]}x{kernel[1]} neighbours: the kernels hold up to {MAX_TAPS}"
    batch, _, height, width = query.shape
    # Offsets to neighbours far outside the map must fit as well.
    if batch * height * width >= 2**31 or height * width * max(kernel) >= 2**31:
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
