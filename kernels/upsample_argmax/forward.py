"""Triton forward of upsample_argmax: labels straight from the small map.

A program walks over the classes with the pixels of a tile; each of its lanes keeps the best class
that it met, and the lanes of a pixel are compared once, at the end.
"""

from __future__ import annotations

from itertools import product

import torch
import triton
import triton.language as tl

from ..._layout import is_channels_inner
from .._class_tiles import class_offsets, corner_offsets, owned_pixels, refuse_map, resized
from .._launch import TRITON_DTYPES, AotCase, Launch, on_device, refuse_tensor, run

UNSPECIALIZED = ["classes", "height", "width", "small_height", "small_width", "align_corners"]


@triton.jit
def first_of_largest(b_best, b_index, b_valid):
    """Of [POSITIONS, CLASSES] lanes: the smallest index with the largest value, NaN the largest."""
    b_nan = b_valid & (b_best != b_best)
    b_number = tl.where(b_valid & (b_best == b_best), b_best, -float("inf"))
    b_largest = b_valid & (b_number == tl.max(b_number, axis=1)[:, None])
    b_any = tl.max(b_nan.to(tl.int32), axis=1)[:, None] != 0
    b_chosen = (b_any & b_nan) | ((b_any == 0) & b_largest)
    return tl.min(tl.where(b_chosen, b_index, 2147483647), axis=1)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def argmax_kernel(
    p_logits,
    p_out,
    classes,
    height,
    width,
    small_height,
    small_width,
    align_corners,
    POSITIONS: tl.constexpr,
    CLASSES: tl.constexpr,
    INNER: tl.constexpr,
):
    """out = argmax over k of resize(logits)[k]; the first of equal classes, the first NaN.

    p_logits [B, K, h, w], or channels last with INNER; p_out [B, H, W] int64.
    Grid: B * ceil(H * W / POSITIONS); one program owns a run of pixels of one item.
    Reads the logits out of the caches, four a pixel and class; writes 8 bytes a pixel.
    """
    area = height * width
    batch, b_pixel, in_map = owned_pixels(area, POSITIONS)
    b_lane = tl.arange(0, CLASSES)
    sizes = (height, width, small_height, small_width)
    b_place = tl.minimum(b_pixel, area - 1)
    corners = corner_offsets(b_place, classes, sizes, align_corners, INNER)
    small_area = small_height * small_width
    p_item = p_logits + batch * classes * small_area
    b_best = tl.full([POSITIONS, CLASSES], -float("inf"), tl.float32)
    b_index = tl.zeros([POSITIONS, CLASSES], tl.int32) + b_lane[None, :]
    for start in range(0, classes, CLASSES):
        b_class = start + b_lane
        mask = in_map[:, None] & (b_class < classes)[None, :]
        p_scores = p_item + class_offsets(b_class, small_area, INNER)
        b_logit = resized(p_scores, corners, mask)
        b_better = (b_logit > b_best) | ((b_logit != b_logit) & (b_best == b_best))
        b_better = b_better & mask
        b_best = tl.where(b_better, b_logit, b_best)
        b_index = tl.where(b_better, b_class[None, :], b_index)
    b_label = first_of_largest(b_best, b_index, (b_lane < classes)[None, :])
    tl.store(p_out + batch * area + b_pixel, b_label.to(tl.int64), mask=in_map)


def tile_launch(positions: int, classes: int, inner: bool) -> Launch:
    constants = {"POSITIONS": positions, "CLASSES": classes, "INNER": inner}
    return Launch(constants, warps=4, registers=255)


FORWARD = {False: tile_launch(512, 1, False), True: tile_launch(16, 32, True)}


def forward(
    logits: torch.Tensor, height: int, width: int, align_corners: bool
) -> tuple[torch.Tensor]:
    """Labels [B, H, W], int64."""
    batch, classes, *small = logits.shape
    launch = FORWARD[is_channels_inner(logits)]
    out = logits.new_empty((batch, height, width), dtype=torch.int64)
    with on_device(logits) as (logits,):
        run(
            argmax_kernel,
            batch * triton.cdiv(height * width, launch.constants["POSITIONS"]),
            logits,
            out,
            classes,
            height,
            width,
            *small,
            int(align_corners),
            launch=launch,
        )
    return (out,)


def refuse(logits: torch.Tensor, height: int, width: int, align_corners: bool) -> str | None:
    """The reason why this kernel cannot run an input, None if it can."""
    return refuse_map(logits, height, width) or refuse_tensor(logits)


def aot_cases() -> list[AotCase]:
    """Every compilation that `forward` can ask for."""
    return [
        AotCase(argmax_kernel, {"p_logits": dtype, "p_out": "i64"}, FORWARD[inner])
        for dtype, inner in product(TRITON_DTYPES.values(), (False, True))
    ]
