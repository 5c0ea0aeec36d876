"""Triton backward of merge_scales.

"attention": one kernel makes the gradient of the logits, and the weights of the scales for the
next one. "max": the forward kernel notes the winning scale of every output in a byte. Then each map
gathers its own gradient: a position sums over the outputs that read it, in row-major order.
"""

from __future__ import annotations

from itertools import product

import torch
import triton
import triton.language as tl

from ..._layout import empty_map, is_channels_inner
from .._bilinear import readers_begin, readers_end, resize_pair, share_of
from .._class_tiles import (
    class_offsets,
    corner_offsets,
    load_wide,
    owned_pixels,
    pixel_offsets,
    reader_range,
    resized,
)
from .._launch import TRITON_DTYPES, AotCase, aligned_storage, device_guard, run
from .forward import (
    CAPACITIES,
    MAPS,
    TILES,
    UNSPECIALIZED,
    capacity_for,
    merge,
    padded_maps,
    scale_weights,
    tile_launch,
)


@triton.jit(do_not_specialize=[name for name in UNSPECIALIZED if name != "reduce"])
def merge_logits_backward_kernel(
    p_grad,
    p_0,
    p_1,
    p_2,
    p_3,
    p_4,
    p_5,
    p_6,
    p_7,
    p_logits,
    p_dlogits,
    p_weights,
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
    align_corners,
    POSITIONS: tl.constexpr,
    CLASSES: tl.constexpr,
    CAPACITY: tl.constexpr,
    INNER: tl.constexpr,
):
    """dlogits[s] = weight[s] * (dw[s] - sum over t of weight[t] * dw[t]).

    dw[s] = sum over k of grad[k] * r[s, k]; weight is the softmax of the logits, r as in
    merge_kernel. p_grad [B, K, H, W], p_logits, p_dlogits [B, S, H, W], p_s as in merge_kernel, or
    channels last with INNER; p_weights [B, S, H, W] float32, contiguous.
    Grid: B * ceil(H * W / POSITIONS); one program owns a run of pixels of one item. Reads grad once
    a scale, the maps out of the caches; writes 4 bytes a weight and dlogits once.
    """
    area = height * width
    batch, b_pixel, in_map = owned_pixels(area, POSITIONS)
    b_pixel = tl.minimum(b_pixel, area - 1)
    b_scale = tl.arange(0, CAPACITY)
    maps = (p_0, p_1, p_2, p_3, p_4, p_5, p_6, p_7)
    heights = (height_0, height_1, height_2, height_3, height_4, height_5, height_6, height_7)
    widths = (width_0, width_1, width_2, width_3, width_4, width_5, width_6, width_7)
    p_grads = p_grad + batch * classes * area + pixel_offsets(b_pixel, classes, INNER)
    b_dw = tl.zeros([POSITIONS, CAPACITY], tl.float32)
    for s in tl.static_range(CAPACITY):
        if s < scales:
            sizes = (height, width, heights[s], widths[s])
            corners = corner_offsets(b_pixel, classes, sizes, align_corners, INNER)
            small_area = heights[s] * widths[s]
            p_item = maps[s] + batch * classes * small_area
            b_sum = tl.zeros([POSITIONS, CLASSES], tl.float32)
            for start in range(0, classes, CLASSES):
                b_class = start + tl.arange(0, CLASSES)
                mask = in_map[:, None] & (b_class < classes)[None, :]
                p_scores = p_item + class_offsets(b_class, small_area, INNER)
                b_score = resized(p_scores, corners, mask)
                b_grad = load_wide(p_grads + class_offsets(b_class, area, INNER), mask)
                b_sum += b_grad * b_score
            b_dw = tl.where((b_scale == s)[None, :], tl.sum(b_sum, axis=1)[:, None], b_dw)
    p_item = p_logits + batch * scales * area
    b_weight = scale_weights(p_item, b_pixel, in_map, scales, area, CAPACITY, INNER)
    b_mean = tl.sum(b_weight * b_dw, axis=1)[:, None]
    mask = in_map[:, None] & (b_scale < scales)[None, :]
    item = batch * scales * area
    place = item + pixel_offsets(b_pixel, scales, False) + class_offsets(b_scale, area, False)
    tl.store(p_weights + place, b_weight, mask=mask)
    b_dlogit = (b_weight * (b_dw - b_mean)).to(p_dlogits.dtype.element_ty)
    place = item + pixel_offsets(b_pixel, scales, INNER) + class_offsets(b_scale, area, INNER)
    tl.store(p_dlogits + place, b_dlogit, mask=mask)


SIZES = ["small_height", "small_width", "scale", "scales", "classes", "height", "width"]


@triton.jit(
    do_not_specialize=[*SIZES, "reduce", "align_corners"], do_not_specialize_on_alignment=["p_out"]
)
def merge_map_backward_kernel(
    p_grad,
    p_weights,
    p_winners,
    p_out,
    small_height,
    small_width,
    scale,
    scales,
    classes,
    height,
    width,
    reduce,
    align_corners,
    POSITIONS: tl.constexpr,
    CLASSES: tl.constexpr,
    INNER: tl.constexpr,
):
    """out[k, i, j] = sum over the outputs reading (i, j) of share * factor * grad[k].

    The factor: the weight of this scale (reduce 0), 1 / S (1), whether the scale won (2).
    p_grad [B, K, H, W], p_winners the same in int8, p_out [B, K, h, w], or channels last with
    INNER; p_weights [B, S, H, W] float32, contiguous. Weights and winners are read where needed.
    Grid: B * h * ceil(w / POSITIONS) * ceil(K / CLASSES); one program owns positions of a row of
    the map for a block of classes of one item. Reads grad once from memory, four times from the
    caches; writes out once.
    """
    tiles = tl.cdiv(small_width, POSITIONS)
    blocks = tl.cdiv(classes, CLASSES)
    block = tl.program_id(0) % blocks
    tile = (tl.program_id(0) // blocks) % tiles
    row = (tl.program_id(0) // (blocks * tiles)) % small_height
    batch = (tl.program_id(0) // (blocks * tiles * small_height)).to(tl.int64)
    b_position = tile * POSITIONS + tl.arange(0, POSITIONS)
    b_class = block * CLASSES + tl.arange(0, CLASSES)
    in_map = b_position < small_width
    mask = in_map[:, None] & (b_class < classes)[None, :]
    b_source = tl.minimum(b_position, small_width - 1)
    area = height * width
    first_row = readers_begin(row, small_height, height, align_corners)
    last_row = readers_end(row, small_height, height, align_corners)
    b_begin, b_end = reader_range(b_source, small_width, width, align_corners)
    most = tl.max(tl.where(in_map, b_end - b_begin, 0), axis=0)
    weighted = tl.where(reduce == 0, width, 0)
    won = tl.where(reduce == 2, width, 0)
    share_of_mean = tl.where(reduce == 1, 1.0 / scales.to(tl.float32), 1.0)
    item = batch * classes * area + class_offsets(b_class, area, INNER)
    p_weights += (batch * scales + scale) * area
    b_sum = tl.zeros([POSITIONS, CLASSES], tl.float32)
    for y in range(first_row, last_row):
        at = row * 0 + y  # a tensor for the interpreter too
        top, bottom, down = resize_pair(at, small_height, height, align_corners)
        share_y = share_of(top, bottom, down, row) * share_of_mean
        readers = tl.where((top == row) | (bottom == row), most, 0)
        for step in range(readers):
            b_x = b_begin + step
            b_first, b_second, b_across = resize_pair(b_x, small_width, width, align_corners)
            b_reads = (b_x < b_end) & ((b_first == b_source) | (b_second == b_source))
            b_share = share_y * share_of(b_first, b_second, b_across, b_source)
            b_pixel = at * width + b_x
            b_weight = tl.load(p_weights + b_pixel, mask=b_reads & (b_x < weighted), other=1.0)
            place = item + pixel_offsets(b_pixel, classes, INNER)
            reads = mask & b_reads[:, None]
            b_grad = load_wide(p_grad + place, reads)
            b_winner = tl.load(p_winners + place, mask=reads & (b_x < won)[:, None], other=0)
            b_won = tl.where(b_winner.to(tl.int32) == scale, b_grad, 0.0)
            b_grad = tl.where(reduce == 2, b_won, b_grad)
            b_sum += tl.where(reads, (b_share * b_weight)[:, None] * b_grad, 0.0)
    small_area = small_height * small_width
    p_out += batch * classes * small_area
    place = pixel_offsets(row * small_width + b_source, classes, INNER)
    place += class_offsets(b_class, small_area, INNER)
    tl.store(p_out + place, b_sum.to(p_out.dtype.element_ty), mask=mask)


# Tiles of small positions x classes.
GATHER = {False: tile_launch(False, (32, 16)), True: tile_launch(True, (16, 32))}


def backward(
    grad: torch.Tensor,
    scores: list[torch.Tensor],
    logits: torch.Tensor | None,
    reduce: int,
    align_corners: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The packed gradients of the maps, and dlogits like the logits or of shape [0]."""
    inner = is_channels_inner(scores[0])
    batch, classes, height, width = grad.shape
    grad = aligned_storage(grad)
    dlogits = grad.new_empty((0,))
    weights = grad.new_empty((1,), dtype=torch.float32)
    winners = grad.new_empty((1,), dtype=torch.int8)
    if logits is not None:
        weights = grad.new_empty(logits.shape, dtype=torch.float32)
        dlogits = _logits_backward(grad, scores, logits, weights, align_corners)
    elif reduce == 2:
        winners = empty_map(grad.shape, winners, inner)
        merge(scores, None, winners, reduce, align_corners, winner=True)
    packed = grad.new_empty((sum(s.numel() for s in scores),))
    parts = packed.split([s.numel() for s in scores])
    launch = GATHER[inner]
    blocks = triton.cdiv(classes, launch.constants["CLASSES"])
    for scale, (score, part) in enumerate(zip(scores, parts, strict=True)):
        small_height, small_width = score.shape[2:]
        tiles = triton.cdiv(small_width, launch.constants["POSITIONS"])
        with device_guard(grad):
            run(
                merge_map_backward_kernel,
                batch * small_height * tiles * blocks,
                grad,
                weights,
                winners,
                part,
                small_height,
                small_width,
                scale,
                len(scores),
                classes,
                height,
                width,
                reduce,
                int(align_corners),
                launch=launch,
            )
    return packed, dlogits


def _logits_backward(
    grad: torch.Tensor,
    scores: list[torch.Tensor],
    logits: torch.Tensor,
    weights: torch.Tensor,
    align_corners: bool,
) -> torch.Tensor:
    """dlogits; fills `weights` [B, S, H, W], contiguous."""
    inner = is_channels_inner(scores[0])
    batch, classes, height, width = grad.shape
    launch = tile_launch(inner, TILES[inner], CAPACITY=capacity_for(scores))
    dlogits = empty_map(logits.shape, logits, inner)
    maps, sizes = padded_maps(scores)
    with device_guard(grad):
        run(
            merge_logits_backward_kernel,
            batch * triton.cdiv(height * width, launch.constants["POSITIONS"]),
            grad,
            *maps,
            aligned_storage(logits),
            dlogits,
            weights,
            *sizes,
            len(scores),
            classes,
            height,
            width,
            int(align_corners),
            launch=launch,
        )
    return dlogits


def aot_cases() -> list[AotCase]:
    """Every compilation that `backward` can ask for, besides those of `merge`."""
    cases = []
    for dtype, inner in product(TRITON_DTYPES.values(), (False, True)):
        pointers = dict.fromkeys(("p_grad", *MAPS, "p_logits", "p_dlogits"), dtype)
        pointers["p_weights"] = "fp32"
        for capacity in CAPACITIES:
            launch = tile_launch(inner, TILES[inner], CAPACITY=capacity)
            cases.append(AotCase(merge_logits_backward_kernel, pointers, launch))
        pointers = {"p_grad": dtype, "p_weights": "fp32", "p_winners": "i8", "p_out": dtype}
        cases.append(AotCase(merge_map_backward_kernel, pointers, GATHER[inner]))
    return cases
