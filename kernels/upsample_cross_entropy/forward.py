"""Triton forward of upsample_cross_entropy: losses straight from the small map.

A program walks over the classes with the pixels of a tile, as in upsample_argmax. Each lane keeps
the largest logit that it met and the sum of exponentials relative to it (Milakov and Gimelshein,
Online normalizer calculation for softmax, 2018); the lanes of a pixel meet at the end.
"""

from __future__ import annotations

from itertools import product

import torch
import triton
import triton.language as tl

from ..._layout import is_channels_inner
from .._class_tiles import class_offsets, corner_offsets, owned_pixels, refuse_map, resized
from .._launch import TRITON_DTYPES, AotCase, Launch, on_device, refuse_tensor, run

UNSPECIALIZED = [
    "batches",
    "classes",
    "height",
    "width",
    "small_height",
    "small_width",
    "ignore_index",
    "align_corners",
]


@triton.jit(do_not_specialize=UNSPECIALIZED)
def cross_entropy_kernel(
    p_logits,
    p_target,
    p_loss,
    p_statistics,
    batches,
    classes,
    height,
    width,
    small_height,
    small_width,
    ignore_index,
    align_corners,
    POSITIONS: tl.constexpr,
    CLASSES: tl.constexpr,
    INNER: tl.constexpr,
):
    """loss = rest - (l[target] - m), m = max over k of l[k], rest = log(sum over k exp(l[k] - m)).

    l is resize(logits) at a pixel. p_logits [B, K, h, w], or channels last with INNER; p_target
    [B, H, W] int64; p_loss [B, H, W] and p_statistics [2, B, H, W], which is m and rest, float32.
    The loss is 0 at ignored pixels and NaN where the target is no class.
    Grid: B * ceil(H * W / POSITIONS); one program owns a run of pixels of one item.
    Reads the logits out of the caches, four a pixel and class, and 8 bytes a pixel; writes 12.
    """
    area = height * width
    batch, b_pixel, in_map = owned_pixels(area, POSITIONS)
    b_lane = tl.arange(0, CLASSES)
    sizes = (height, width, small_height, small_width)
    b_place = tl.minimum(b_pixel, area - 1)
    corners = corner_offsets(b_place, classes, sizes, align_corners, INNER)
    small_area = small_height * small_width
    p_item = p_logits + batch * classes * small_area
    b_target = tl.load(p_target + batch * area + b_pixel, mask=in_map, other=0)
    b_largest = tl.full([POSITIONS, CLASSES], -float("inf"), tl.float32)
    b_sum = tl.zeros([POSITIONS, CLASSES], tl.float32)
    b_true = tl.zeros([POSITIONS, CLASSES], tl.float32)
    for start in range(0, classes, CLASSES):
        b_class = start + b_lane
        mask = in_map[:, None] & (b_class < classes)[None, :]
        p_scores = p_item + class_offsets(b_class, small_area, INNER)
        b_logit = resized(p_scores, corners, mask)
        b_true = tl.where(b_target[:, None] == b_class[None, :], b_logit, b_true)
        # Minus infinity adds nothing, and must not meet a largest logit of minus infinity.
        b_adds = mask & (b_logit != -float("inf"))
        b_rises = b_adds & (b_logit > b_largest)
        b_ratio = tl.exp(tl.where(b_rises, b_largest - b_logit, b_logit - b_largest))
        b_next = tl.where(b_rises, b_sum * b_ratio + 1.0, b_sum + b_ratio)
        b_sum = tl.where(b_adds, b_next, b_sum)
        b_largest = tl.where(b_rises, b_logit, b_largest)
    b_m = tl.max(b_largest, axis=1)
    b_rest = tl.log(tl.sum(b_sum * tl.exp(b_largest - b_m[:, None]), axis=1))
    b_loss = b_rest - (tl.sum(b_true, axis=1) - b_m)
    b_loss = tl.where((b_target >= 0) & (b_target < classes), b_loss, float("nan"))
    b_loss = tl.where(b_target == ignore_index, 0.0, b_loss)
    place = batch * area + b_pixel
    pixels = batches.to(tl.int64) * area
    tl.store(p_loss + place, b_loss, mask=in_map)
    tl.store(p_statistics + place, b_m, mask=in_map)
    tl.store(p_statistics + pixels + place, b_rest, mask=in_map)


def tile_launch(positions: int, classes: int, inner: bool) -> Launch:
    constants = {"POSITIONS": positions, "CLASSES": classes, "INNER": inner}
    return Launch(constants, warps=4, registers=255)


FORWARD = {False: tile_launch(512, 1, False), True: tile_launch(16, 32, True)}


def forward(
    logits: torch.Tensor, target: torch.Tensor, ignore_index: int, align_corners: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Unweighted losses [B, H, W] and statistics [2, B, H, W], both float32."""
    batch, height, width = target.shape
    launch = FORWARD[is_channels_inner(logits)]
    loss = logits.new_empty(target.shape, dtype=torch.float32)
    statistics = logits.new_empty((2, *target.shape), dtype=torch.float32)
    with on_device(logits, target) as (logits, target):
        run(
            cross_entropy_kernel,
            batch * triton.cdiv(height * width, launch.constants["POSITIONS"]),
            logits,
            target,
            loss,
            statistics,
            batch,
            logits.shape[1],
            height,
            width,
            *logits.shape[2:],
            ignore_index,
            int(align_corners),
            launch=launch,
        )
    return loss, statistics


def refuse(
    logits: torch.Tensor, target: torch.Tensor, ignore_index: int, align_corners: bool
) -> str | None:
    """The reason why these kernels cannot run an input, None if they can."""
    if not -(2**31) <= ignore_index < 2**31:
        return f"triton: ignore_index={ignore_index} needs more than 32 bits"
    return refuse_map(logits, *target.shape[1:]) or refuse_tensor(logits)


def aot_cases() -> list[AotCase]:
    """Every compilation that `forward` can ask for."""
    others = {"p_target": "i64", "p_loss": "fp32", "p_statistics": "fp32"}
    return [
        AotCase(cross_entropy_kernel, {"p_logits": dtype, **others}, FORWARD[inner])
        for dtype, inner in product(TRITON_DTYPES.values(), (False, True))
    ]
