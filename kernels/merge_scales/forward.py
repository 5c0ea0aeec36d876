"""Triton forward of merge_scales: score maps are resized and merged in registers.

Source: Chen et al., Attention to Scale (CVPR 2016), section 3.1, eq. (1) and (2).

The maps are separate arguments, so that none is copied: one compilation takes up to four of them,
another one up to eight.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl

from ..._layout import empty_map, is_channels_inner
from .._class_tiles import class_offsets, corner_offsets, pixel_offsets, refuse_map, resized
from .._launch import (
    TRITON_DTYPES,
    AotCase,
    Launch,
    aligned_storage,
    device_guard,
    refuse_tensor,
    run,
)

CAPACITIES = (4, 8)
MAPS = [f"p_{s}" for s in range(8)]
UNSPECIALIZED = [
    "scales",
    "classes",
    "height",
    "width",
    "reduce",
    "align_corners",
    *(f"{side}_{s}" for side in ("height", "width") for s in range(8)),
]


@triton.jit
def scale_weights(p_item, b_pixel, in_map, scales, area, CAPACITY: tl.constexpr, INNER):
    """Softmax over the scales of the attention logits at pixels: [POSITIONS, CAPACITY]."""
    b_scale = tl.arange(0, CAPACITY)
    mask = in_map[:, None] & (b_scale < scales)[None, :]
    place = pixel_offsets(b_pixel, scales, INNER) + class_offsets(b_scale, area, INNER)
    b_logit = tl.load(p_item + place, mask=mask, other=-float("inf")).to(tl.float32)
    b_weight = tl.exp(b_logit - tl.max(b_logit, axis=1)[:, None])
    return b_weight / tl.sum(b_weight, axis=1)[:, None]


@triton.jit(do_not_specialize=UNSPECIALIZED)
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
    CLASSES: tl.constexpr,
    CAPACITY: tl.constexpr,
    WINNER: tl.constexpr,
    INNER: tl.constexpr,
):
    """out = sum over s of softmax(logits)[s] * r[s] (reduce 0), mean (1) or maximum (2) of r[s].

    r[s] is the map s, resized. p_s [B, K, height_s, width_s], p_logits [B, S, H, W] (read with
    reduce 0 alone), p_out [B, K, H, W], or all channels last with INNER. With WINNER, out is the
    s with the largest r[s] instead, int8: the first of equals, the first NaN.
    Grid: B * ceil(H * W / POSITIONS) * ceil(K / CLASSES); one program owns a run of pixels and a
    block of classes of one item. Reads the maps out of the caches, four values each an output.
    """
    area = height * width
    tiles = tl.cdiv(area, POSITIONS)
    blocks = tl.cdiv(classes, CLASSES)
    block = tl.program_id(0) % blocks
    tile = (tl.program_id(0) // blocks) % tiles
    batch = (tl.program_id(0) // (blocks * tiles)).to(tl.int64)
    b_pixel = tile * POSITIONS + tl.arange(0, POSITIONS)
    b_class = block * CLASSES + tl.arange(0, CLASSES)
    in_map = b_pixel < area
    mask = in_map[:, None] & (b_class < classes)[None, :]
    b_pixel = tl.minimum(b_pixel, area - 1)
    attended = tl.where(reduce == 0, scales, 0)
    p_item = p_logits + batch * scales * area
    b_weights = scale_weights(p_item, b_pixel, in_map, attended, area, CAPACITY, INNER)
    maps = (p_0, p_1, p_2, p_3, p_4, p_5, p_6, p_7)
    heights = (height_0, height_1, height_2, height_3, height_4, height_5, height_6, height_7)
    widths = (width_0, width_1, width_2, width_3, width_4, width_5, width_6, width_7)
    b_sum = tl.zeros([POSITIONS, CLASSES], tl.float32)
    b_best = tl.full([POSITIONS, CLASSES], -float("inf"), tl.float32)
    b_winner = tl.zeros([POSITIONS, CLASSES], tl.int32)
    for s in tl.static_range(CAPACITY):
        if s < scales:
            sizes = (height, width, heights[s], widths[s])
            corners = corner_offsets(b_pixel, classes, sizes, align_corners, INNER)
            small_area = heights[s] * widths[s]
            p_scores = maps[s] + batch * classes * small_area
            p_scores += class_offsets(b_class, small_area, INNER)
            b_score = resized(p_scores, corners, mask)
            b_chosen = (tl.arange(0, CAPACITY) == s)[None, :]
            b_weight = tl.sum(tl.where(b_chosen, b_weights, 0.0), axis=1)[:, None]
            b_sum += tl.where(reduce == 0, b_weight, 1.0) * b_score
            b_better = (b_score > b_best) | ((b_score != b_score) & (b_best == b_best))
            b_best = tl.where(b_better, b_score, b_best)
            b_winner = tl.where(b_better, s, b_winner)
    b_out = tl.where(reduce == 1, b_sum / scales.to(tl.float32), b_sum)
    b_out = tl.where(reduce == 2, b_best, b_out)
    if WINNER:
        b_out = b_winner
    place = pixel_offsets(b_pixel, classes, INNER) + class_offsets(b_class, area, INNER)
    p_out += batch * classes * area
    tl.store(p_out + place, b_out.to(p_out.dtype.element_ty), mask=mask)


def tile_launch(inner: bool, tile: tuple[int, int], **others: Any) -> Launch:
    constants = {"POSITIONS": tile[0], "CLASSES": tile[1], **others, "INNER": inner}
    return Launch(constants, warps=4, registers=255)


# Tiles of pixels x classes, contiguous and channels last.
TILES = {False: (128, 4), True: (16, 32)}


def capacity_for(scores: list[torch.Tensor]) -> int:
    return next(n for n in CAPACITIES if len(scores) <= n)


def padded_maps(scores: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[int]]:
    """Eight maps, their heights and widths; the first map stands for those that are not there."""
    maps = [*scores, *[scores[0]] * (8 - len(scores))]
    sizes = [*(m.shape[2] for m in maps), *(m.shape[3] for m in maps)]
    return [aligned_storage(m) for m in maps], sizes


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
    launch = tile_launch(inner, TILES[inner], CAPACITY=capacity_for(scores), WINNER=winner)
    maps, sizes = padded_maps(scores)
    batch, classes, height, width = out.shape
    tiles = triton.cdiv(height * width, launch.constants["POSITIONS"])
    with device_guard(out):
        run(
            merge_kernel,
            batch * tiles * triton.cdiv(classes, launch.constants["CLASSES"]),
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
    return refuse_tensor(scores[0])


def aot_cases() -> list[AotCase]:
    """Every compilation that `merge` can ask for."""
    cases = []
    flags = (False, True)
    for dtype, inner, capacity, winner in product(TRITON_DTYPES.values(), flags, CAPACITIES, flags):
        pointers = dict.fromkeys((*MAPS, "p_logits"), dtype)
        pointers["p_out"] = "i8" if winner else dtype
        launch = tile_launch(inner, TILES[inner], CAPACITY=capacity, WINNER=winner)
        cases.append(AotCase(merge_kernel, pointers, launch))
    return cases
