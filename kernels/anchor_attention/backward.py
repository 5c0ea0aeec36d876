"""Triton backward of anchor_attention: probabilities recomputed from the saved log-sum-exp.

Cost in element traffic, N positions, C = Ck = Cv channels: 3 C N is the floor (query, grad in,
dquery out). Here query and grad are read twice, and probabilities and score gradients of S anchors
written and read: 5 C N + 5 S N, 6 % above 5 C N at C = 2048, S = 128. The reason is dkey and
dvalue: sums over N of outer products, whose [C, S] float32 accumulators (1 MB each at C = 2048) do
not fit beside the score tiles of a program. Recomputing the scores for every channel block instead
would multiply their 4 C S N operations by C / 128. So the positions go through in slabs: a kernel
writes the probabilities of a slab, a second one score gradients and dquery (apart, each fits two
programs on a multiprocessor), a third multiplies query and grad with them, a fourth sums the
partial results. Constants bound the scratch, whatever N and B are.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..._layout import empty_map, is_channels_inner
from .._launch import TRITON_DTYPES, AotCase, Launch, on_device, run
from .._multiples import known_multiple
from .._products import as_product
from .partials import AnchorGradients, partial_cases
from .tiles import (
    Variant,
    accumulate_scores,
    by_score,
    in_order,
    load_bias,
    score_order,
    split_factor,
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
        "anchors",
        "has_bias",
        "first_item",
        "first_tile",
        "slab_tiles",
    ]
)
def probability_kernel(
    p_query,
    p_key,
    p_bias,
    p_lse,
    p_weight,
    scale,
    positions,
    key_channels,
    anchors,
    has_bias,
    first_item,
    first_tile,
    slab_tiles,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    ANCHORS: tl.constexpr,
    INNER: tl.constexpr,
    MULTIPLE: tl.constexpr,
    ROW_MULTIPLE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """p = exp(scale query^T key + bias - lse) of a slab of positions.

    p_query [B, Ck, N]: contiguous, or with INNER the channel index fastest. p_key [B, Ck, S],
    p_bias [B, S] (with has_bias): contiguous, S <= ANCHORS. p_lse [B, N] float32.
    p_weight [items, slab_tiles * POSITIONS, ANCHORS]: p in query's dtype, 0 past the ends.
    Grid: items * slab_tiles, the slab being tiles first_tile, first_tile + 1, ... of the batch
    items first_item, ...; one program owns one tile of POSITIONS positions.
    Reads query once and writes the slab; the anchors come out of the L2 cache.
    """
    item = (tl.program_id(0) // slab_tiles).to(tl.int64)
    batch = first_item + item
    slab_tile = tl.program_id(0) % slab_tiles
    if INNER:
        key_channels = known_multiple(key_channels, MULTIPLE)
    else:
        positions = known_multiple(positions, MULTIPLE)
    row = known_multiple(anchors, ROW_MULTIPLE)
    b_position = (first_tile + slab_tile) * POSITIONS + tl.arange(0, POSITIONS)
    acc = accumulate_scores(
        p_query + batch * key_channels * positions,
        p_key + batch * key_channels * row,
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
    b_anchor = score_order(ANCHORS, PRECISION)
    b_lse = tl.load(p_lse + batch * positions + b_position, mask=inside, other=0.0)
    b_bias = load_bias(p_bias + batch * anchors, b_anchor, anchors, has_bias)
    weight = tl.exp(acc * scale + b_bias[None, :] - b_lse[:, None])
    # The rounding of the saved statistic is a common factor of a row; its sum takes it out again.
    weight *= (1.0 / tl.sum(weight, axis=1))[:, None]
    weight = tl.where(inside[:, None], weight, 0.0)
    p_tile = p_weight + (item * slab_tiles + slab_tile) * (POSITIONS * ANCHORS)
    p_tile += tl.arange(0, POSITIONS)[:, None] * ANCHORS + tl.arange(0, ANCHORS)[None, :]
    tl.store(p_tile, in_order(weight.to(p_weight.dtype.element_ty), PRECISION))


@triton.jit(
    do_not_specialize=[
        "positions",
        "key_channels",
        "value_channels",
        "value_anchors",
        "key_anchors",
        "first_item",
        "first_tile",
        "slab_tiles",
    ]
)
def score_gradient_kernel(
    p_grad,
    p_key,
    p_value,
    p_weight,
    p_dquery,
    p_dscore,
    scale,
    positions,
    key_channels,
    value_channels,
    value_anchors,
    key_anchors,
    first_item,
    first_tile,
    slab_tiles,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    ANCHORS: tl.constexpr,
    INNER: tl.constexpr,
    MULTIPLE: tl.constexpr,
    ROW_MULTIPLE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dp = grad^T value; ds = p (dp - sum p dp); dquery = scale key ds^T.

    p_grad [B, Cv, N], p_dquery [B, Ck, N]: contiguous, or with INNER the channel index fastest.
    p_key [B, Ck, S], p_value [B, Cv, S]: contiguous, S = key_anchors = value_anchors <= ANCHORS:
    one number, but as one the compiler would keep the offsets of both tables over all phases.
    p_weight, p_dscore [items, slab_tiles * POSITIONS, ANCHORS]: p and ds of the slab, see
    probability_kernel.
    Grid: as that of probability_kernel.
    Reads grad and p once and writes dquery and ds once; the anchors come out of the L2 cache.
    """
    item = (tl.program_id(0) // slab_tiles).to(tl.int64)
    batch = first_item + item
    slab_tile = tl.program_id(0) % slab_tiles
    if INNER:
        key_channels = known_multiple(key_channels, MULTIPLE)
        value_channels = known_multiple(value_channels, MULTIPLE)
    else:
        positions = known_multiple(positions, MULTIPLE)
    value_row = known_multiple(value_anchors, ROW_MULTIPLE)
    key_row = known_multiple(key_anchors, ROW_MULTIPLE)
    b_position = (first_tile + slab_tile) * POSITIONS + tl.arange(0, POSITIONS)
    dweight = accumulate_scores(
        p_grad + batch * value_channels * positions,
        p_value + batch * value_channels * value_row,
        b_position,
        positions,
        value_channels,
        value_anchors,
        CHANNELS,
        ANCHORS,
        INNER,
        ROW_MULTIPLE,
        PRECISION,
    )
    b_slab = tl.arange(0, POSITIONS)[:, None] * ANCHORS + tl.arange(0, ANCHORS)[None, :]
    slab = (item * slab_tiles + slab_tile) * (POSITIONS * ANCHORS)
    weight = by_score(tl.load(p_weight + slab + b_slab), PRECISION).to(tl.float32)
    dscore = weight * dweight
    dscore -= weight * tl.sum(dscore, axis=1)[:, None]
    if PRECISION == "tf32x3":
        dscore = as_product(dscore)
    b_dscore = in_order(dscore.to(p_dscore.dtype.element_ty), PRECISION)
    # Past the end an infinite value times the zero gradient is not a zero to be summed.
    b_dscore = tl.where((b_position < positions)[:, None], b_dscore, 0.0)
    tl.store(p_dscore + slab + b_slab, b_dscore)
    factors = split_factor(b_dscore, PRECISION)
    store_products(
        factors,
        p_key + batch * key_channels * key_row,
        p_dquery + batch * key_channels * positions,
        scale,
        (b_position, positions, key_channels),
        key_anchors,
        CHANNELS,
        ANCHORS,
        INNER,
        ROW_MULTIPLE,
        PRECISION,
    )


def score_launch(variant: Variant) -> Launch:
    """The configuration of the kernels of scores for one class of inputs."""
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
    dbias = None if bias is None else torch.empty_like(bias)
    with on_device(grad, query, key, value) as (grad, query, key, value):
        variant = variant_of(query, value, inner)
        scores = score_launch(variant)
        tile, padded = scores.constants["POSITIONS"], variant.anchors
        tiles = triton.cdiv(positions, tile)
        slab_tiles = min(tiles, SLAB_ELEMENTS // padded // tile)
        group = min(batch, SLAB_ELEMENTS // padded // tile // slab_tiles)
        weight = query.new_empty(group, slab_tiles * tile, padded)
        dscore = torch.empty_like(weight)
        sums = AnchorGradients(dkey, dvalue, dbias, variant, group, slab_tiles * tile)
        for item in range(0, batch, group):
            items = min(group, batch - item)
            for first_tile in range(0, tiles, slab_tiles):
                count = min(slab_tiles, tiles - first_tile)
                of_slab = (item, first_tile, count)
                run(
                    probability_kernel,
                    items * count,
                    query,
                    key,
                    key if bias is None else bias,
                    lse,
                    weight,
                    scale,
                    positions,
                    key_channels,
                    anchors,
                    int(bias is not None),
                    *of_slab,
                    launch=scores,
                )
                run(
                    score_gradient_kernel,
                    items * count,
                    grad,
                    key,
                    value,
                    weight,
                    dquery,
                    dscore,
                    scale,
                    positions,
                    key_channels,
                    value_channels,
                    anchors,
                    anchors,
                    *of_slab,
                    launch=scores,
                )
                slab = (item, items, first_tile * tile, count * tile)
                sums.accumulate(query, dscore, grad, weight, *slab)
            sums.finish(item, items, scale)
    return dquery, dkey, dvalue, key.new_empty(0) if dbias is None else dbias


def aot_cases() -> list[AotCase]:
    """Every compilation that `backward` can ask for."""
    cases = partial_cases()
    for dtype in TRITON_DTYPES.values():
        of_weight = dict.fromkeys(("p_query", "p_key", "p_bias", "p_weight"), dtype)
        of_weight |= {"p_lse": "fp32"}
        maps = ("p_grad", "p_key", "p_value", "p_weight", "p_dquery", "p_dscore")
        of_score = dict.fromkeys(maps, dtype)
        for variant in variants(dtype):
            for kernel, pointers in (
                (probability_kernel, of_weight),
                (score_gradient_kernel, of_score),
            ):
                launch = score_launch(variant)
                own = (pointers, launch, {"scale": "fp32"}, variant.generations)
                cases.append(AotCase(kernel, *own))
    return cases
