"""Triton forward of anchor_attention: softmax attention of every position over a few anchors.

Source: Zhu et al., Asymmetric Non-local Neural Networks for Semantic Segmentation (ICCV 2019),
section 3.2: the anchors are the pyramid-pooled positions of a map.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import torch
import triton
import triton.language as tl

from ..._layout import empty_map, is_channels_inner
from ...anchor_attention import MAX_FUSED_ANCHORS
from .._launch import TRITON_DTYPES, AotCase, Launch, on_device, refuse_tensor, run
from .._multiples import known_multiple
from .tiles import (
    Anchors,
    accumulate_scores,
    multiple_of,
    pack_cases,
    precision_of,
    store_products,
    tile_launch,
    tile_of,
    variants,
)


@triton.jit(
    do_not_specialize=["positions", "key_channels", "value_channels", "key_rows", "value_rows"]
)
def anchor_attention_forward_kernel(
    p_query,
    p_key,
    p_value,
    p_bias,
    p_out,
    p_lse,
    scale,
    positions,
    key_channels,
    value_channels,
    key_rows,
    value_rows,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    ANCHORS: tl.constexpr,
    INNER: tl.constexpr,
    MULTIPLE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out = softmax(scale query^T key + bias) value^T; lse = log sum exp of the scores.

    p_query [B, Ck, N], p_out [B, Cv, N]: contiguous, or with INNER the channel index fastest.
    p_key [B, key_rows, ANCHORS], p_value [B, value_rows, ANCHORS], p_bias [B, ANCHORS] float32: as
    pack_anchors_kernel writes them. p_lse [B, N] float32.
    Grid: B * ceil(N / POSITIONS); one program owns POSITIONS positions of one batch item and holds
    their whole score rows in registers, so the softmax needs one pass and no running maximum.
    Reads query once and writes out once from and to device memory; the anchors, S * (Ck + Cv)
    elements a program, come out of the L2 cache.
    """
    tiles = tl.cdiv(positions, POSITIONS)
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    start = (tl.program_id(0) % tiles) * POSITIONS
    if INNER:
        key_channels = known_multiple(key_channels, MULTIPLE)
        value_channels = known_multiple(value_channels, MULTIPLE)
    else:
        positions = known_multiple(positions, MULTIPLE)
    b_position = start + tl.arange(0, POSITIONS)
    b_anchor = tl.arange(0, ANCHORS)

    p_query += batch * key_channels * positions
    p_key += batch * key_rows * ANCHORS
    acc = accumulate_scores(
        p_query, p_key, b_position, positions, key_channels, CHANNELS, ANCHORS, INNER, PRECISION
    )
    b_bias = tl.load(p_bias + batch * ANCHORS + b_anchor)
    scores = acc * scale + b_bias[None, :]
    largest = tl.max(scores, axis=1)
    weight = tl.exp(scores - largest[:, None])
    total = tl.sum(weight, axis=1)
    tl.store(
        p_lse + batch * positions + b_position,
        largest + tl.log(total),
        mask=b_position < positions,
    )
    weight = weight * (1.0 / total)[:, None]
    b_weight = weight.to(p_out.dtype.element_ty)
    p_value += batch * value_rows * ANCHORS
    p_out += batch * value_channels * positions
    tile = (b_position, positions, value_channels)
    store_products(b_weight, p_value, p_out, 1.0, tile, CHANNELS, ANCHORS, INNER, PRECISION)


FEW_POSITIONS = 32768  # below, tiles of 128 positions are fewer than two per multiprocessor


def forward_launch(
    dtype: str, anchors: int, multiple: int, precision: str, inner: bool, few: bool
) -> Launch:
    """The configuration of one class of inputs; `anchors` is padded, `few` says few positions."""
    tile = tile_of(dtype, anchors, multiple, precision)
    if few and tile.rows == 128:
        tile = replace(tile, rows=64, warps=4)  # twice as many programs
    return tile_launch(tile, tile.rows, tile.chunk, anchors, multiple, precision, inner)


def forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of query [B, Ck, N] over anchors: out [B, Cv, N] in its layout and lse [B, N]."""
    batch, key_channels, positions = query.shape
    value_channels = value.shape[1]
    inner = is_channels_inner(query)
    out = empty_map((batch, value_channels, positions), query, inner)
    lse = query.new_empty(batch, positions, dtype=torch.float32)
    with on_device(query) as (query,):
        anchors = Anchors(key, value, bias)
        launch = forward_launch(
            TRITON_DTYPES[query.dtype],
            anchors.padded,
            multiple_of(query, value, inner),
            precision_of(query.dtype),
            inner,
            batch * positions < FEW_POSITIONS,
        )
        run(
            anchor_attention_forward_kernel,
            batch * triton.cdiv(positions, launch.constants["POSITIONS"]),
            query,
            anchors.key,
            anchors.value,
            anchors.bias,
            out,
            lse,
            scale,
            positions,
            key_channels,
            value_channels,
            anchors.key_rows,
            anchors.value_rows,
            launch=launch,
        )
    return out, lse


def refuse(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
) -> str | None:
    """The reason why these kernels cannot run an input, None if they can."""
    if key.shape[2] > MAX_FUSED_ANCHORS:
        return f"triton: S={key.shape[2]} anchors: the fused kernel holds up to {MAX_FUSED_ANCHORS}"
    if query.shape[0] * query.shape[2] >= 2**31:
        return "triton: B*N positions must be fewer than 2**31"
    return refuse_tensor(query)


def aot_cases() -> list[AotCase]:
    """Every compilation that `forward` can ask for."""
    cases = pack_cases()
    for dtype in TRITON_DTYPES.values():
        pointers = dict.fromkeys(("p_query", "p_key", "p_value", "p_out"), dtype)
        pointers |= {"p_bias": "fp32", "p_lse": "fp32"}
        for variant, few in product(variants(dtype), (False, True)):
            launch = forward_launch(dtype, *variant, few)
            if not few or launch != forward_launch(dtype, *variant, False):
                cases.append(
                    AotCase(anchor_attention_forward_kernel, pointers, launch, {"scale": "fp32"})
                )
    return cases
