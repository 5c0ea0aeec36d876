"""Triton forward of anchor_attention: softmax attention of every position over a few anchors.

Source: Zhu et al., Asymmetric Non-local Neural Networks for Semantic Segmentation (ICCV 2019),
section 3.2: the anchors are the pyramid-pooled positions of a map.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..._layout import empty_map, is_channels_inner
from ...anchor_attention import MAX_FUSED_ANCHORS
from .._launch import TRITON_DTYPES, AotCase, Launch, on_device, refuse_tensor, run
from .._multiples import known_multiple
from .tiles import (
    FEW_POSITIONS,
    Variant,
    accumulate_scores,
    in_order,
    load_bias,
    score_order,
    split_factor,
    store_products,
    tile_of,
    variant_of,
    variants,
)


@triton.jit(
    do_not_specialize=[
        "positions",
        "key_channels",
        "value_channels",
        "key_anchors",
        "value_anchors",
        "has_bias",
    ]
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
    key_anchors,
    value_anchors,
    has_bias,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    ANCHORS: tl.constexpr,
    INNER: tl.constexpr,
    MULTIPLE: tl.constexpr,
    ROW_MULTIPLE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out = softmax(scale query^T key + bias) value^T; lse = log sum exp of the scores.

    p_query [B, Ck, N], p_out [B, Cv, N]: contiguous, or with INNER the channel index fastest.
    p_key [B, Ck, S], p_value [B, Cv, S], p_bias [B, S] (with has_bias): contiguous, S = key_anchors
    = value_anchors <= ANCHORS: one number, but as one the compiler would keep the offsets of both
    tables over both phases.
    p_lse [B, N] float32.
    Grid: B * ceil(N / POSITIONS); one program owns POSITIONS positions of one batch item and holds
    their whole score rows in registers, so the softmax needs one pass and no running maximum.
    Reads query once and writes out once from and to device memory; the anchors, S * (Ck + Cv)
    elements a program, come out of the L2 cache, padded to ANCHORS with zeros on their way.
    """
    tiles = tl.cdiv(positions, POSITIONS)
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    start = (tl.program_id(0) % tiles) * POSITIONS
    if INNER:
        key_channels = known_multiple(key_channels, MULTIPLE)
        value_channels = known_multiple(value_channels, MULTIPLE)
    else:
        positions = known_multiple(positions, MULTIPLE)
    key_row = known_multiple(key_anchors, ROW_MULTIPLE)
    value_row = known_multiple(value_anchors, ROW_MULTIPLE)
    b_position = start + tl.arange(0, POSITIONS)
    b_anchor = score_order(ANCHORS, PRECISION)

    acc = accumulate_scores(
        p_query + batch * key_channels * positions,
        p_key + batch * key_channels * key_row,
        b_position,
        positions,
        key_channels,
        key_anchors,
        CHANNELS,
        ANCHORS,
        INNER,
        ROW_MULTIPLE,
        PRECISION,
    )
    b_bias = load_bias(p_bias + batch * key_anchors, b_anchor, key_anchors, has_bias)
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
    b_weight = in_order(weight.to(p_out.dtype.element_ty), PRECISION)
    store_products(
        split_factor(b_weight, PRECISION),
        p_value + batch * value_channels * value_row,
        p_out + batch * value_channels * positions,
        1.0,
        (b_position, positions, value_channels),
        value_anchors,
        CHANNELS,
        ANCHORS,
        INNER,
        ROW_MULTIPLE,
        PRECISION,
    )


def forward_launch(variant: Variant, few: bool) -> Launch:
    """The configuration for one class of inputs; `few` says few positions."""
    tile = tile_of(variant, few)
    return variant.launch(tile, tile.rows, tile.chunk)


def forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of query [B, Ck, N] over anchors: out [B, Cv, N] in its layout and lse [B, N]."""
    batch, key_channels, positions = query.shape
    value_channels, count = value.shape[1:]
    inner = is_channels_inner(query)
    out = empty_map((batch, value_channels, positions), query, inner)
    lse = query.new_empty(batch, positions, dtype=torch.float32)
    with on_device(query, key, value) as (query, key, value):
        launch = forward_launch(variant_of(query, value, inner), batch * positions < FEW_POSITIONS)
        run(
            anchor_attention_forward_kernel,
            batch * triton.cdiv(positions, launch.constants["POSITIONS"]),
            query,
            key,
            value,
            key if bias is None else bias,
            out,
            lse,
            scale,
            positions,
            key_channels,
            value_channels,
            count,
            count,
            int(bias is not None),
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
    cases = []
    for dtype in TRITON_DTYPES.values():
        pointers = dict.fromkeys(("p_query", "p_key", "p_value", "p_bias", "p_out"), dtype)
        pointers |= {"p_lse": "fp32"}
        for variant in variants(dtype):
            launches = [forward_launch(variant, few) for few in (False, True)]
            for launch in launches[: 1 if launches[0] == launches[1] else 2]:
                cases.append(
                    AotCase(
                        anchor_attention_forward_kernel,
                        pointers,
                        launch,
                        {"scale": "fp32"},
                        variant.generations,
                    )
                )
    return cases
