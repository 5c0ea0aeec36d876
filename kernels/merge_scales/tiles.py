"""Tiles of pixels and classes for merge_scales: where a pixel's neighbours are, in every map.

A thread owns one or two pixels and a few neighbouring classes of them, one after the other, so that
what depends on the pixel is found once for all its classes. Channels last, LANES threads share a
pixel's classes; else a thread's classes are its own. Tiles are [POSITIONS, LANES], a class each.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from .._bilinear import resize_pair
from .._launch import Launch, aligned_storage

CAPACITIES = (1, 3, 8)
MAPS = [f"p_{s}" for s in range(8)]
SIDES = [f"{side}_{s}" for side in ("height", "width") for s in range(8)]


@triton.jit
def lane_classes(block, CLASSES: tl.constexpr, LANES: tl.constexpr):
    """First class [1, LANES] of every lane in a block of LANES * CLASSES classes."""
    return (block * (LANES * CLASSES) + tl.arange(0, LANES) * CLASSES)[None, :]


@triton.jit
def tile_pixels(first, POSITIONS: tl.constexpr, LANES: tl.constexpr):
    """Pixels [POSITIONS, LANES] of a tile, the same in all lanes."""
    b_pixel = first + tl.arange(0, POSITIONS)
    return tl.broadcast_to(b_pixel[:, None], [POSITIONS, LANES])


@triton.jit
def class_pointers(p_item, b_pixel, b_class, classes, area, INNER: tl.constexpr):
    """Pointers [POSITIONS, LANES] to classes of pixels in an item of `area` pixels."""
    if INNER:
        return p_item + (b_pixel.to(tl.int64) * classes + b_class)
    return p_item + (b_class.to(tl.int64) * area + b_pixel)


@triton.jit
def class_stride(area, INNER: tl.constexpr):
    """Elements from a class to the next."""
    return 1 if INNER else tl.cast(area, tl.int64)


@triton.jit
def neighbours(p_item, b_pixel, b_class, classes, sizes, align_corners, INNER: tl.constexpr):
    """Pointers to a pixel's four neighbours in a map, their weights, and the stride of classes.

    sizes: height and width of the result, then of the map.
    """
    height, width, small_height, small_width = sizes
    area = small_height * small_width
    b_row, b_column = b_pixel // width, b_pixel % width
    b_top, b_bottom, b_down = resize_pair(b_row, small_height, height, align_corners)
    b_left, b_right, b_across = resize_pair(b_column, small_width, width, align_corners)
    b_top, b_bottom = b_top * small_width, b_bottom * small_width
    return (
        class_pointers(p_item, b_top + b_left, b_class, classes, area, INNER),
        class_pointers(p_item, b_top + b_right, b_class, classes, area, INNER),
        class_pointers(p_item, b_bottom + b_left, b_class, classes, area, INNER),
        class_pointers(p_item, b_bottom + b_right, b_class, classes, area, INNER),
        (1.0 - b_down) * (1.0 - b_across),
        (1.0 - b_down) * b_across,
        b_down * (1.0 - b_across),
        b_down * b_across,
        class_stride(area, INNER),
    )


@triton.jit
def load_wide(p_values, mask):
    return tl.load(p_values, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def resized(found, step, mask):
    """Scores [POSITIONS, LANES], `step` classes on; `found` are the `neighbours`.

    With the same roundings wherever it is compiled into: maxima are found again in the backward.
    """
    offset = step * found[8]
    b_sum = found[4] * load_wide(found[0] + offset, mask)
    b_sum = tl.fma(found[5], load_wide(found[1] + offset, mask), b_sum)
    b_sum = tl.fma(found[6], load_wide(found[2] + offset, mask), b_sum)
    return tl.fma(found[7], load_wide(found[3] + offset, mask), b_sum)


@triton.jit
def all_neighbours(
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
    CAPACITY: tl.constexpr,
    INNER: tl.constexpr,
):
    """The `neighbours` in every map of an item."""
    found = ()
    for s in tl.static_range(CAPACITY):
        p_item = maps[s] + batch * classes * heights[s] * widths[s]
        sizes = (height, width, heights[s], widths[s])
        one = neighbours(p_item, b_pixel, b_class, classes, sizes, align_corners, INNER)
        found += (one,)
    return found


@triton.jit
def scale_weights(
    p_item, b_pixel, in_map, scales, area, CAPACITY: tl.constexpr, INNER: tl.constexpr
):
    """Softmax over the scales of the attention logits at pixels: CAPACITY tiles."""
    logits = ()
    b_most = tl.full(b_pixel.shape, -float("inf"), tl.float32)
    for s in tl.static_range(CAPACITY):
        p_logits = class_pointers(p_item, b_pixel, tl.zeros_like(b_pixel) + s, scales, area, INNER)
        b_logit = tl.load(p_logits, mask=in_map & (s < scales), other=-float("inf"))
        b_logit = b_logit.to(tl.float32)
        logits += (b_logit,)
        b_most = tl.maximum(b_most, b_logit)
    b_total = tl.zeros(b_pixel.shape, tl.float32)
    shares = ()
    for s in tl.static_range(CAPACITY):
        b_share = tl.exp(logits[s] - b_most)
        shares += (b_share,)
        b_total += b_share
    weights = ()
    for s in tl.static_range(CAPACITY):
        weights += (shares[s] / b_total,)
    return weights


def tile_launch(inner: bool, capacity: int, **others: Any) -> Launch:
    """The configuration of every kernel here. 21 classes are 3 blocks of 7, or 4 lanes of 6."""
    positions, lanes, classes = (32, 4, 6) if inner else (128, 1, 7)
    constants = {"POSITIONS": positions, "LANES": lanes, "CLASSES": classes}
    constants |= {"CAPACITY": capacity, **others, "INNER": inner}
    return Launch(constants, warps=4, registers=255)


def resizing_launch(inner: bool, capacity: int, **others: Any) -> Launch:
    """Of kernels that resize all maps: many of them leave registers for few classes at once."""
    few = {} if capacity <= 3 else {"CLASSES": 2}
    return tile_launch(inner, capacity, **others, **few)


def class_blocks(classes: int, launch: Launch) -> int:
    return triton.cdiv(classes, launch.constants["LANES"] * launch.constants["CLASSES"])


def capacity_for(scores: list[torch.Tensor]) -> int:
    return next(n for n in CAPACITIES if len(scores) <= n)


def padded_maps(scores: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[int]]:
    """Eight maps, their heights and widths; the first map stands for those that are not there."""
    maps = [*scores, *[scores[0]] * (8 - len(scores))]
    sizes = [*(m.shape[2] for m in maps), *(m.shape[3] for m in maps)]
    return [aligned_storage(m) for m in maps], sizes
