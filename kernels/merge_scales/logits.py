"""Gradient of merge_scales' attention logits, and of the maps that are not resized."""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import (
    SIDES,
    all_neighbours,
    class_pointers,
    class_stride,
    lane_classes,
    load_wide,
    resized,
    scale_weights,
    tile_pixels,
)

NUMBERS = ["batches", "scales", "classes", "height", "width", "align_corners"]


@triton.jit(do_not_specialize=[*NUMBERS, *SIDES])
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
    batches,
    scales,
    classes,
    height,
    width,
    align_corners,
    POSITIONS: tl.constexpr,
    LANES: tl.constexpr,
    CLASSES: tl.constexpr,
    CAPACITY: tl.constexpr,
    INNER: tl.constexpr,
):
    """dlogits[s] = weight[s] * (dw[s] - sum over t of weight[t] * dw[t]).

    dw[s] = sum over k of grad[k] * r[s, k]; weight is the softmax of the logits, r as in
    merge_kernel. p_grad [B, K, H, W], p_logits, p_dlogits [B, S, H, W], p_s as in merge_kernel, or
    channels last with INNER; p_weights [B, S, H, W] float32, contiguous. Maps of the result's size
    get their gradients here too, weight[s] * grad, in p_out as in merge_rows_backward_kernel.
    Grid: B * ceil(H * W / POSITIONS); one program owns a run of pixels of one item. Reads grad
    once, the maps out of the caches; writes 4 bytes a weight and dlogits once.
    """
    area = height * width
    tiles = tl.cdiv(area, POSITIONS)
    tile = tl.program_id(0) % tiles
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    b_pixel = tile_pixels(tile * POSITIONS, POSITIONS, LANES)
    b_class = lane_classes(0, CLASSES, LANES)
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
    p_tile = class_pointers(p_grad + batch * classes * area, b_pixel, b_class, classes, area, INNER)
    stride = class_stride(area, INNER)
    sums = ()
    for _ in tl.static_range(CAPACITY):
        sums += (tl.zeros([POSITIONS, LANES], tl.float32),)
    for start in range(0, classes, LANES * CLASSES):
        for k in tl.static_range(CLASSES):
            mask = in_map & (b_class + (start + k) < classes)
            b_grad = load_wide(p_tile + (start + k) * stride, mask)
            added = ()
            for s in tl.static_range(CAPACITY):
                b_score = resized(found[s], start + k, mask & (s < scales))
                added += (sums[s] + b_grad * b_score,)
            sums = added
    item = batch * scales * area
    weights = scale_weights(p_logits + item, b_pixel, in_map, scales, area, CAPACITY, INNER)
    b_mean = tl.zeros([POSITIONS], tl.float32)
    for s in tl.static_range(CAPACITY):
        # Every lane has the weight, and its own part of the sum.
        b_mean += tl.sum(tl.where(s < scales, weights[s] * sums[s], 0.0), axis=1)
    b_mean = b_mean[:, None]
    first_lane = in_map & (tl.arange(0, LANES) == 0)[None, :]
    for s in tl.static_range(CAPACITY):
        mask = first_lane & (s < scales)
        b_dw = tl.sum(sums[s], axis=1)[:, None]
        b_scale = tl.zeros_like(b_pixel) + s
        p_weight = class_pointers(p_weights + item, b_pixel, b_scale, scales, area, False)
        tl.store(p_weight, weights[s], mask=mask)
        b_dlogit = (weights[s] * (b_dw - b_mean)).to(p_dlogits.dtype.element_ty)
        p_logit = class_pointers(p_dlogits + item, b_pixel, b_scale, scales, area, INNER)
        tl.store(p_logit, b_dlogit, mask=mask)
    b_place = class_pointers(batch * classes * area, b_pixel, b_class, classes, area, INNER)
    pixels = batch * 0
    for s in tl.static_range(CAPACITY):
        if (heights[s] == height) & (widths[s] == width) & (s < scales):
            p_map = p_out + pixels * batches * classes + b_place
            for start in range(0, classes, LANES * CLASSES):
                grads = ()  # all loads before the first store, which none of them waits for
                for k in tl.static_range(CLASSES):
                    mask = in_map & (b_class + (start + k) < classes)
                    grads += (load_wide(p_tile + (start + k) * stride, mask),)
                for k in tl.static_range(CLASSES):
                    mask = in_map & (b_class + (start + k) < classes)
                    b_out = (weights[s] * grads[k]).to(p_out.dtype.element_ty)
                    tl.store(p_map + (start + k) * stride, b_out, mask=mask)
        pixels += tl.cast(heights[s], tl.int64) * widths[s]
