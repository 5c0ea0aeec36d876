"""Triton backward of anchor_attention: probabilities recomputed from the saved log-sum-exp.

Cost in element traffic, N positions, C = Ck = Cv channels: 3 C N is the floor (query, grad in,
dquery out). Here query and grad are read twice, and probabilities and score gradients of S anchors
written and read once: 5 C N + 4 S N, 5 % above 5 C N at C = 2048, S = 128. The reason is dkey and
dvalue: sums over N of outer products, whose [C, S] float32 accumulators (1 MB each at C = 2048) do
not fit beside the score tiles of a program. Recomputing the scores for every channel block instead
would multiply their 4 C S N operations by C / 128. So the positions go through in slabs: a kernel
writes probabilities, score gradients and dquery of a slab, a second one multiplies query and grad
with them, a third sums the partial results. Constants bound the scratch, whatever N and B are.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..._layout import empty_map, is_channels_inner
from .._launch import TRITON_DTYPES, AotCase, Launch, on_device, run
from .._multiples import known_multiple
from .partials import AnchorGradients, partial_cases
from .tiles import (
    Variant,
    accumulate_scores,
    load_bias,
    score_order,
    store_products,
    tile_of,
    variant_of,
    variants,
)

SLAB_ELEMENTS = 2**23  # of each of the two scratch tables: 65536 positions of 128 anchors


@triton.jit(
    do_not_specialize=[
        "positions",
        "key_channels",
        "value_channels",
        "anchors",
        "has_bias",
        "first_item",
        "first_tile",
        "slab_tiles",
        "bias_tiles",
        "add",
    ]
)
def score_gradient_kernel(
    p_grad,
    p_query,
    p_key,
    p_value,
    p_bias,
    p_lse,
    p_dquery,
    p_weight,
    p_dscore,
    p_dbias,
    scale,
    positions,
    key_channels,
    value_channels,
    anchors,
    has_bias,
    first_item,
    first_tile,
    slab_tiles,
    bias_tiles,
    add,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    ANCHORS: tl.constexpr,
    INNER: tl.constexpr,
    MULTIPLE: tl.constexpr,
    ROW_MULTIPLE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """p = exp(scores - lse); ds = p (dp - sum p dp), dp = grad^T value; dquery = scale key ds^T.

    p_grad [B, Cv, N], p_query and p_dquery [B, Ck, N]: contiguous, or with INNER the channel index
    fastest. p_key [B, Ck, S], p_value [B, Cv, S], p_bias [B, S] (with has_bias): contiguous,
    S <= ANCHORS. p_lse [B, N] float32.
    p_weight, p_dscore [items, slab_tiles * POSITIONS, ANCHORS]: p and ds of the slab in query's
    dtype. p_dbias [items, bias_tiles, ANCHORS] float32: ds summed over a tile; added to if `add`.
    Grid: items * slab_tiles, the slab being tiles first_tile, first_tile + 1, ... of the batch
    items first_item, ...; one program owns one tile of POSITIONS positions.
    Reads query and grad once and writes dquery once; the anchors come out of the L2 cache.
    """
    item = (tl.program_id(0) // slab_tiles).to(tl.int64)
    batch = first_item + item
    slab_tile = tl.program_id(0) % slab_tiles
    tile = first_tile + slab_tile
    if INNER:
        key_channels = known_multiple(key_channels, MULTIPLE)
        value_channels = known_multiple(value_channels, MULTIPLE)
    else:
        positions = known_multiple(positions, MULTIPLE)
    row = known_multiple(anchors, ROW_MULTIPLE)
    b_position = tile * POSITIONS + tl.arange(0, POSITIONS)
    b_anchor = score_order(ANCHORS, PRECISION)
    p_key += batch * key_channels * row
    p_query += batch * key_channels * positions

    acc = accumulate_scores(
        p_query,
        p_key,
        b_position,
        positions,
        key_channels,
        anchors,
        CHANNELS,
        ANCHORS,
        INNER,
        ROW_MULTIPLE,
        PRECISION,
    )
    inside = b_position < positions
    b_lse = tl.load(p_lse + batch * positions + b_position, mask=inside, other=0.0)
    b_bias = load_bias(p_bias + batch * anchors, b_anchor, anchors, has_bias)
    weight = tl.exp(acc * scale + b_bias[None, :] - b_lse[:, None])
    # The rounding of the saved statistic is a common factor of a row; its sum takes it out again.
    weight *= (1.0 / tl.sum(weight, axis=1))[:, None]
    weight = tl.where(inside[:, None], weight, 0.0)
    # Kept in the input dtype, as PyTorch keeps it: half the registers during the next product.
    b_weight = weight.to(p_weight.dtype.element_ty)
    b_row = slab_tile * POSITIONS + tl.arange(0, POSITIONS)
    slab = item * slab_tiles * (POSITIONS * ANCHORS)
    b_slab = b_row[:, None] * ANCHORS + b_anchor[None, :]
    tl.store(p_weight + slab + b_slab, b_weight)

    dweight = accumulate_scores(
        p_grad + batch * value_channels * positions,
        p_value + batch * value_channels * row,
        b_position,
        positions,
        value_channels,
        anchors,
        CHANNELS,
        ANCHORS,
        INNER,
        ROW_MULTIPLE,
        PRECISION,
    )
    weight = b_weight.to(tl.float32)
    delta = tl.sum(weight * dweight, axis=1)
    dscore = weight * (dweight - delta[:, None])
    # Past the end an infinite value times the zero gradient is not a zero to be added.
    dscore = tl.where(inside[:, None], dscore, 0.0)
    b_dscore = dscore.to(p_dscore.dtype.element_ty)
    tl.store(p_dscore + slab + b_slab, b_dscore)
    p_tile_bias = p_dbias + (item * bias_tiles + slab_tile) * ANCHORS + b_anchor
    b_dbias = tl.sum(dscore, axis=0)
    if add:
        b_dbias += tl.load(p_tile_bias)
    tl.store(p_tile_bias, b_dbias)
    store_products(
        b_dscore,
        p_key,
        p_dquery + batch * key_channels * positions,
        scale,
        (b_position, positions, key_channels),
        anchors,
        CHANNELS,
        ANCHORS,
        INNER,
        ROW_MULTIPLE,
        PRECISION,
    )


def score_launch(variant: Variant) -> Launch:
    """The configuration of score_gradient_kernel for one class of inputs."""
    tile = tile_of(variant, False)
    return variant.launch(tile, tile.rows, tile.chunk)


def backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    lse: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients with respect to query, key, value and bias (shape [0] without one)."""
    batch, key_channels, positions = query.shape
    value_channels, anchors = value.shape[1:]
    inner = is_channels_inner(query)
    dquery = empty_map(query.shape, query, inner)
    dkey, dvalue = torch.empty_like(key), torch.empty_like(value)
    dbias = key.new_empty(0 if bias is None else bias.shape)
    with on_device(grad, query, key, value) as (grad, query, key, value):
        variant = variant_of(query, value, inner)
        scores = score_launch(variant)
        tile, padded = scores.constants["POSITIONS"], variant.anchors
        tiles = triton.cdiv(positions, tile)
        slab_tiles = min(tiles, SLAB_ELEMENTS // padded // tile)
        group = min(batch, SLAB_ELEMENTS // padded // tile // slab_tiles)
        weight = query.new_empty(group, slab_tiles * tile, padded)
        dscore = torch.empty_like(weight)
        tile_dbias = query.new_empty(group, slab_tiles, padded, dtype=torch.float32)
        sums = AnchorGradients(dkey, dvalue, dbias, variant, group, slab_tiles * tile)
        for item in range(0, batch, group):
            items = min(group, batch - item)
            for first_tile in range(0, tiles, slab_tiles):
                count = min(slab_tiles, tiles - first_tile)
                run(
                    score_gradient_kernel,
                    items * count,
                    grad,
                    query,
                    key,
                    value,
                    key if bias is None else bias,
                    lse,
                    dquery,
                    weight,
                    dscore,
                    tile_dbias,
                    scale,
                    positions,
                    key_channels,
                    value_channels,
                    anchors,
                    int(bias is not None),
                    item,
                    first_tile,
                    count,
                    slab_tiles,
                    int(first_tile > 0),
                    launch=scores,
                )
                slab = (item, items, first_tile * tile, count * tile)
                sums.accumulate(query, dscore, grad, weight, *slab)
            sums.finish(tile_dbias, item, items, scale)
    return dquery, dkey, dvalue, dbias


def aot_cases() -> list[AotCase]:
    """Every compilation that `backward` can ask for."""
    cases = partial_cases()
    for dtype in TRITON_DTYPES.values():
        maps = ("p_grad", "p_query", "p_key", "p_value", "p_bias", "p_dquery", "p_weight")
        pointers = dict.fromkeys((*maps, "p_dscore"), dtype)
        pointers |= dict.fromkeys(("p_lse", "p_dbias"), "fp32")
        for variant in variants(dtype):
            launch = score_launch(variant)
            cases.append(AotCase(score_gradient_kernel, pointers, launch, {"scale": "fp32"}))
    return cases
