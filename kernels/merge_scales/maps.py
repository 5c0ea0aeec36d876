"""Gradients of merge_scales' maps: what outputs send to each map, summed by rows, then by columns.

One launch serves all maps: programs are numbered scale by scale.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._bilinear import cell_begin, reader_range, resize_pair, share_of
from .tiles import SIDES, class_pointers, class_stride, lane_classes, load_wide, tile_pixels

NUMBERS = ["batches", "classes", "height", "width", "align_corners"]


@triton.jit
def find_scale(unit, counts, heights, widths, width, CAPACITY: tl.constexpr):
    """The scale of a unit, when the scales have so many of them (counts), one after the other.

    Returns:
        scale, number of the unit within it, height, width, pixels of the maps before it, rows of
        sums before it (of maps that are as wide as the result there are none).
    """
    scale, first, start, rows, rows_passed = unit * 0, unit * 0, unit * 0, unit * 0, unit * 0
    pixels = tl.cast(unit * 0, tl.int64)
    pixels_passed = tl.cast(unit * 0, tl.int64)
    small_height, small_width = unit * 0 + heights[0], unit * 0 + widths[0]
    for s in tl.static_range(CAPACITY):
        here = unit >= start
        scale = tl.where(here, s, scale)
        first = tl.where(here, start, first)
        small_height = tl.where(here, heights[s], small_height)
        small_width = tl.where(here, widths[s], small_width)
        pixels = tl.where(here, pixels_passed, pixels)
        rows = tl.where(here, rows_passed, rows)
        start += counts[s]
        pixels_passed += tl.cast(heights[s], tl.int64) * widths[s]
        rows_passed += tl.where(widths[s] != width, heights[s], 0)
    return scale, unit - first, small_height, small_width, pixels, rows


@triton.jit
def rows_of_sums(heights, widths, width, CAPACITY: tl.constexpr):
    """Rows of sums of an item."""
    rows = width * 0
    for s in tl.static_range(CAPACITY):
        rows += tl.where(widths[s] != width, heights[s], 0)
    return rows


@triton.jit(do_not_specialize=[*NUMBERS, *SIDES, "scales", "reduce"])
def merge_rows_backward_kernel(
    p_grad,
    p_weights,
    p_winners,
    p_sums,
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
    reduce,
    align_corners,
    POSITIONS: tl.constexpr,
    LANES: tl.constexpr,
    CLASSES: tl.constexpr,
    CAPACITY: tl.constexpr,
    WINNERS: tl.constexpr,
    INNER: tl.constexpr,
):
    """sums[k, i, x] = sum over the rows y that read row i of share(y, i) * factor[y, x] * grad[k].

    The factor: the weight of this scale (reduce 0), 1 / S (1), whether the scale won (2, WINNERS).
    p_grad [B, K, H, W], p_winners the same in int8, p_out [B, K, h, w] of all maps, one after the
    other, or channels last with INNER; p_weights [B, S, H, W] float32, contiguous; p_sums
    [B, rows, K, W] float32, with INNER [B, rows, W, K]. Rows of maps as wide as the result need no
    more sums: they go to p_out. Heights of maps that are not there are 0; with reduce 0 there is
    nothing to do for maps of the result's size.
    Grid: B * (h of all other maps) * ceil(W / POSITIONS) * ceil(K / (LANES * CLASSES)); one program
    owns columns of one row of the sums. Reads grad about twice a map out of the caches; writes sums
    once.
    """
    heights = (height_0, height_1, height_2, height_3, height_4, height_5, height_6, height_7)
    widths = (width_0, width_1, width_2, width_3, width_4, width_5, width_6, width_7)
    counts = ()
    all_rows = width * 0
    for s in tl.static_range(CAPACITY):
        done = (heights[s] == height) & (widths[s] == width) & (reduce == 0)
        count = tl.where(done, 0, heights[s])
        counts += (count,)
        all_rows += count
    tiles = tl.cdiv(width, POSITIONS)
    blocks = tl.cdiv(classes, LANES * CLASSES)
    block = tl.program_id(0) % blocks
    tile = (tl.program_id(0) // blocks) % tiles
    unit = (tl.program_id(0) // (blocks * tiles)) % all_rows
    batch = (tl.program_id(0) // (blocks * tiles * all_rows)).to(tl.int64)
    scale, source, small_height, small_width, pixels, rows = find_scale(
        unit, counts, heights, widths, width, CAPACITY
    )
    begin = cell_begin(tl.maximum(source - 1, 0), small_height, height, align_corners)
    end = cell_begin(source + 1, small_height, height, align_corners)
    b_column = tile_pixels(tile * POSITIONS, POSITIONS, LANES)
    b_class = lane_classes(block, CLASSES, LANES)
    in_row = b_column < width
    area = height * width
    item = class_pointers(batch * classes * area, b_column, b_class, classes, area, INNER)
    stride = class_stride(area, INNER)
    p_weights += (batch * scales + scale) * area
    mean = tl.where(reduce == 1, 1.0 / scales.to(tl.float32), 1.0)
    sums = ()
    for _ in tl.static_range(CLASSES):
        sums += (tl.zeros([POSITIONS, LANES], tl.float32),)
    for y in range(begin, end):
        at = tl.cast(y, tl.int32)  # a tensor for the interpreter too
        top, bottom, down = resize_pair(at, small_height, height, align_corners)
        share = share_of(top, bottom, down, source)
        reads = b_column < tl.where(share > 0.0, width, 0)
        b_pixel = at * width + b_column
        b_factor = tl.load(p_weights + b_pixel, mask=reads & (reduce == 0), other=1.0)
        b_factor *= share * mean
        b_place = item + at.to(tl.int64) * width * (classes if INNER else 1)
        added = ()
        for k in tl.static_range(CLASSES):
            mask = reads & (b_class + k < classes)
            b_grad = load_wide(p_grad + (b_place + k * stride), mask)
            if WINNERS:
                b_winner = tl.load(p_winners + (b_place + k * stride), mask=mask, other=-1)
                b_grad = tl.where(b_winner.to(tl.int32) == scale, b_grad, 0.0)
            added += (tl.fma(b_factor, b_grad, sums[k]),)
        sums = added
    if small_width == width:
        small_area = small_height * small_width
        p_item = p_out + (pixels * batches + batch * small_area) * classes
        b_pixel = source * width + b_column
        p_tile = class_pointers(p_item, b_pixel, b_class, classes, small_area, INNER)
        step = class_stride(small_area, INNER)
        for k in tl.static_range(CLASSES):
            b_out = sums[k].to(p_out.dtype.element_ty)
            tl.store(p_tile + k * step, b_out, mask=in_row & (b_class + k < classes))
    else:
        row = batch * rows_of_sums(heights, widths, width, CAPACITY) + rows + source
        p_row = p_sums + row * width * classes
        p_sum = class_pointers(p_row, b_column, b_class, classes, width, INNER)
        step_of_sums = class_stride(width, INNER)
        for k in tl.static_range(CLASSES):
            tl.store(p_sum + k * step_of_sums, sums[k], mask=in_row & (b_class + k < classes))


@triton.jit(do_not_specialize=[*NUMBERS, *SIDES])
def merge_columns_backward_kernel(
    p_sums,
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
    """out[k, i, j] = sum over the columns x that read column j of share(x, j) * sums[k, i, x].

    Pointers as in merge_rows_backward_kernel.
    Grid: B * (h * ceil(w / POSITIONS) of all maps narrower or wider than the result)
    * ceil(K / (LANES * CLASSES)); one program owns positions of a row of a map for a block of
    classes. Reads the sums about twice out of the caches; writes out once.
    """
    heights = (height_0, height_1, height_2, height_3, height_4, height_5, height_6, height_7)
    widths = (width_0, width_1, width_2, width_3, width_4, width_5, width_6, width_7)
    counts = ()
    units = width * 0
    for s in tl.static_range(CAPACITY):
        count = tl.where(widths[s] != width, heights[s] * tl.cdiv(widths[s], POSITIONS), 0)
        counts += (count,)
        units += count
    blocks = tl.cdiv(classes, LANES * CLASSES)
    block = tl.program_id(0) % blocks
    unit = (tl.program_id(0) // blocks) % units
    batch = (tl.program_id(0) // (blocks * units)).to(tl.int64)
    _scale, unit, small_height, small_width, pixels, rows = find_scale(
        unit, counts, heights, widths, width, CAPACITY
    )
    tiles = tl.cdiv(small_width, POSITIONS)
    source = unit // tiles
    b_position = tile_pixels((unit % tiles) * POSITIONS, POSITIONS, LANES)
    b_class = lane_classes(block, CLASSES, LANES)
    in_map = b_position < small_width
    b_position = tl.minimum(b_position, small_width - 1)
    b_begin, b_end = reader_range(b_position, small_width, width, align_corners)
    most = tl.max(tl.max(b_end - b_begin, axis=1), axis=0)
    row = batch * rows_of_sums(heights, widths, width, CAPACITY) + rows + source
    p_row = p_sums + row * width * classes
    p_tile = class_pointers(p_row, b_begin, b_class, classes, width, INNER)
    stride = class_stride(width, INNER)
    sums = ()
    for _ in tl.static_range(CLASSES):
        sums += (tl.zeros([POSITIONS, LANES], tl.float32),)
    for step in range(most):
        b_x = b_begin + step
        b_first, b_second, b_across = resize_pair(b_x, small_width, width, align_corners)
        b_share = share_of(b_first, b_second, b_across, b_position)
        reads = in_map & (b_x < b_end) & (b_share > 0.0)
        p_here = p_tile + tl.cast(step, tl.int64) * (classes if INNER else 1)
        added = ()
        for k in tl.static_range(CLASSES):
            b_sum = load_wide(p_here + k * stride, reads & (b_class + k < classes))
            added += (tl.fma(b_share, b_sum, sums[k]),)
        sums = added
    small_area = small_height * small_width
    p_item = p_out + (pixels * batches + batch * small_area) * classes
    b_pixel = source * small_width + b_position
    p_tile = class_pointers(p_item, b_pixel, b_class, classes, small_area, INNER)
    step = class_stride(small_area, INNER)
    for k in tl.static_range(CLASSES):
        b_out = sums[k].to(p_out.dtype.element_ty)
        tl.store(p_tile + k * step, b_out, mask=in_map & (b_class + k < classes))
