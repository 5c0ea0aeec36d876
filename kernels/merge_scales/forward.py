"""Triton forward of merge_scales: score maps are resized and merged in registers.

Source: Chen et al., Attention to Scale (CVPR 2016), section 3.1, eq. (1) and (2).

The maps are separate arguments, so that none is copied: one compilation takes a single map, another
one up to three of them, a third one up to eight.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl

from ..._layout import empty_map, is_channels_inner
from .._bilinear import refuse_map
from .._launch import TRITON_DTYPES, AotCase, aligned_storage, device_guard, refuse_tensor, run
from .tiles import (
    CAPACITIES,
    MAPS,
    SIDES,
    all_neighbours,
    capacity_for,
    class_blocks,
    class_pointers,
    class_stride,
    lane_classes,
    padded_maps,
    resized,
    resizing_launch,
    scale_weights,
    tile_pixels,
)

SUM, MAXIMUM, WINNER = 0, 1, 2  # what merge_kernel makes of the resized maps


@triton.jit
def better(b_score, b_best):
    """Whether a score is larger; NaN is larger than any number, the first NaN wins."""
    return (b_score > b_best) | ((b_score != b_score) & (b_best == b_best))


@triton.jit(
    do_not_specialize=["scales", "classes", "height", "width", "reduce", "align_corners", *SIDES]
)
def merge_kernel(
    p_0,
    p_1,
    p_2,
    p_3,
    p_4,
    p_5,
    p_6,
    p_7,
    p_logits,
    p_out,
    height_0,
    height_1,
    height_2,
    height_3,
    height_4,
    height_5,
    height_6,
    height_7,
    width_0,
    width_1,
    width_2,
    width_3,
    width_4,
    width_5,
    width_6,
    width_7,
    scales,
    classes,
    height,
    width,
    reduce,
    align_corners,
    POSITIONS: tl.constexpr,
    LANES: tl.constexpr,
    CLASSES: tl.constexpr,
    CAPACITY: tl.constexpr,
    RESULT: tl.constexpr,
    INNER: tl.constexpr,
):
    """out = sum over s of softmax(logits)[s] * r[s] (reduce 0), mean (1) or maximum (2) of r[s].

    r[s] is the map s, resized. p_s [B, K, height_s, width_s], p_logits [B, S, H, W] (read with
    reduce 0 alone), p_out [B, K, H, W], or all channels last with INNER. RESULT: 0 for sums, 1 for
    the maximum, 2 for the s with the largest r[s], int8: the first of equals, the first NaN.
    Grid: B * ceil(H * W / POSITIONS) * ceil(K / (LANES * CLASSES)); one program owns a run of
    pixels and a block of classes of one item. Reads the maps out of the caches, four values each
    an output; writes out once.
    """
    area = height * width
    tiles = tl.cdiv(area, POSITIONS)
    blocks = tl.cdiv(classes, LANES * CLASSES)
    block = tl.program_id(0) % blocks
    tile = (tl.program_id(0) // blocks) % tiles
    batch = (tl.program_id(0) // (blocks * tiles)).to(tl.int64)
    b_pixel = tile_pixels(tile * POSITIONS, POSITIONS, LANES)
    b_class = lane_classes(block, CLASSES, LANES)
    in_map = b_pixel < area
    b_pixel = tl.minimum(b_pixel, area - 1)
    maps = (p_0, p_1, p_2, p_3, p_4, p_5, p_6, p_7)
    heights = (height_0, height_1, height_2, height_3, height_4, height_5, height_6, height_7)
    widths = (width_0, width_1, width_2, width_3, width_4, width_5, width_6, width_7)
    found = all_neighbours(
        maps,
        heights,
        widths,
        batch,
        b_pixel,
        b_class,
        classes,
        height,
        width,
        align_corners,
        CAPACITY,
        INNER,
    )
    if RESULT == 0:
        p_item = p_logits + batch * scales * area
        attended = in_map & (reduce == 0)
        weights = scale_weights(p_item, b_pixel, attended, scales, area, CAPACITY, INNER)
        mean = 1.0 / scales.to(tl.float32)
    p_tile = class_pointers(p_out + batch * classes * area, b_pixel, b_class, classes, area, INNER)
    stride = class_stride(area, INNER)
    for k in tl.static_range(CLASSES):
        mask = in_map & (b_class + k < classes)
        b_out = tl.zeros([POSITIONS, LANES], tl.float32)
        b_winner = tl.zeros([POSITIONS, LANES], tl.int32)
        for s in tl.static_range(CAPACITY):
            b_score = resized(found[s], k, mask & (s < scales))
            if RESULT == 0:
                b_out += tl.where(reduce == 0, weights[s], mean) * b_score
            elif s == 0:
                b_out = b_score
            else:
                b_better = better(b_score, b_out) & (s < scales)
                b_out = tl.where(b_better, b_score, b_out)
                b_winner = tl.where(b_better, s, b_winner)
        if RESULT == 2:
            b_out = b_winner
        tl.store(p_tile + k * stride, b_out.to(p_out.dtype.element_ty), mask=mask)


def merge(
    scores: list[torch.Tensor],
    logits: torch.Tensor | None,
    out: torch.Tensor,
    reduce: int,
    align_corners: bool,
    winner: bool,
) -> None:
    """Fill `out` [B, K, H, W] with merged scores or, int8, with the winning scales."""
    inner = is_channels_inner(scores[0])
    result = WINNER if winner else MAXIMUM if reduce == 2 else SUM
    launch = resizing_launch(inner, capacity_for(scores), RESULT=result)
    maps, sizes = padded_maps(scores)
    batch, classes, height, width = out.shape
    tiles = triton.cdiv(height * width, launch.constants["POSITIONS"])
    with device_guard(out):
        run(
            merge_kernel,
            batch * tiles * class_blocks(classes, launch),
            *maps,
            maps[0] if logits is None else aligned_storage(logits),
            out,
            *sizes,
            len(scores),
            classes,
            height,
            width,
            reduce,
            int(align_corners),
            launch=launch,
        )


def forward(
    scores: list[torch.Tensor],
    logits: torch.Tensor | None,
    height: int,
    width: int,
    reduce: int,
    align_corners: bool,
) -> tuple[torch.Tensor]:
    """[B, K, H, W] in the layout of the maps."""
    first = scores[0]
    out = empty_map((*first.shape[:2], height, width), first, is_channels_inner(first))
    merge(scores, logits, out, reduce, align_corners, winner=False)
    return (out,)


def refuse(
    scores: list[torch.Tensor], logits: torch.Tensor | None, height: int, width: int, *options: Any
) -> str | None:
    """The reason why these kernels cannot run an input, None if they can."""
    if len(scores) > CAPACITIES[-1]:
        return f"triton: {len(scores)} maps, expected at most {CAPACITIES[-1]}"
    for score in scores:
        reason = refuse_map(score, height, width)
        if reason is not None:
            return reason
    batch, classes = scores[0].shape[:2]
    rows = height + sum(score.shape[2] for score in scores)
    columns = max(width, *(score.shape[3] for score in scores))
    if batch * rows * (1 + columns // 32) * (1 + classes // 2) >= 2**31:
        return "triton: the map is too large for one grid"
    return refuse_tensor(scores[0])


def aot_cases() -> list[AotCase]:
    """Every compilation that `merge` can ask for."""
    cases = []
    results, flags = (SUM, MAXIMUM, WINNER), (False, True)
    for dtype, inner, capacity, result in product(
        TRITON_DTYPES.values(), flags, CAPACITIES, results
    ):
        pointers = dict.fromkeys((*MAPS, "p_logits"), dtype)
        pointers["p_out"] = "i8" if result == WINNER else dtype
        launch = resizing_launch(inner, capacity, RESULT=result)
        cases.append(AotCase(merge_kernel, pointers, launch))
    return cases
