"""Triton backward of upsample_cross_entropy: cell by cell, then the four cells of a position.

A program walks down the rows of cells of the small map (_cells.py) with the corners in registers,
makes every probability once, and adds up what each corner gets. A second kernel adds the sums of
the four cells around every position: no atomics, the same order in every run.
"""

from __future__ import annotations

from itertools import product

import torch
import triton
import triton.language as tl

from ..._layout import empty_map, is_channels_inner
from .._cells import (
    CLASS_VECTORS,
    GROUP,
    SLOTS,
    Axis,
    between,
    cell_begin,
    cell_inputs,
    cells_launch,
    class_vector,
    fast_exp2,
    second_weight,
    unit_columns,
)
from .._launch import (
    TRITON_DTYPES,
    AotCase,
    Launch,
    aligned_storage,
    device_guard,
    generation_of,
    run,
)
from .._multiples import known_multiple
from .._rare import hidden_zero, rarely
from .forward import NUMBERS, UNSPECIALIZED
from .join import join_cells

_LOG2E = tl.constexpr(1.4426950408889634)
FAR = tl.constexpr(3.0e38)  # no probability is left of what is compared with it


@triton.jit
def load_pixels(grads, place, reads, classes, options):
    """Of pixels: target, the gradients of the loss and of all logits; m, and rest in halvings."""
    p_grad, p_grad_lse, p_target, p_statistics = grads
    ignore_index, pixels, with_map, b_grad, with_lse = options
    b_target = tl.load(p_target + place, mask=reads, other=-1)
    counts = (b_target >= 0) & (b_target < classes) & (b_target != ignore_index)
    b_true = tl.load(p_grad + place, mask=reads & with_map, other=b_grad)
    b_all = b_true + tl.load(p_grad_lse + place, mask=reads & with_lse, other=0.0)
    b_true, b_all = tl.where(counts, b_true, 0.0), tl.where(counts, b_all, 0.0)
    b_m = tl.load(p_statistics + place, mask=reads, other=FAR)
    b_rest = tl.load(p_statistics + pixels + place, mask=reads, other=0.0)
    return b_target.to(tl.int32), counts, b_true, b_all, b_m, b_rest * _LOG2E


@triton.jit
def share_out(b_first, b_second, b_values, b_weight, EXACT: tl.constexpr):
    """first + (1 - w) values and second + w values; EXACT: nothing where the weight is 0."""
    b_first = tl.fma(1.0 - b_weight, b_values, b_first)
    b_more = tl.fma(b_weight, b_values, b_second)
    if EXACT:
        b_more = tl.where(b_weight == 0.0, b_second, b_more)
    return b_first, b_more


@triton.jit
def add_slot(sums, lefts, rights, b_weight, pixel, b_class, EXACT: tl.constexpr):
    """The sums of the left and right column of every piece of a row, and what a slot adds."""
    b_target, counts, b_true, b_all, b_m, b_rest = pixel
    added = ()
    for q in tl.static_range(len(lefts)):
        b_logit = between(lefts[q], rights[q], b_weight, EXACT)
        b_p = fast_exp2(tl.fma(b_logit - b_m, _LOG2E, -b_rest))
        is_true = b_class + q * b_class.shape[1] == b_target
        b_d = tl.fma(b_all, b_p, tl.where(is_true, -b_true, 0.0))
        if EXACT:
            b_d = tl.where(counts, b_d, 0.0)
        added = added + share_out(sums[2 * q], sums[2 * q + 1], b_d, b_weight, EXACT)
    return added


@triton.jit
def walk_rows(
    grads,
    p_item,
    b_number,
    b_class,
    classes,
    axes,
    options,
    SLOTS: tl.constexpr,
    VECTOR: tl.constexpr,
    INNER: tl.constexpr,
    EXACT: tl.constexpr,
):
    """What the corners of cells get, in four tuples: top left, top right, bottom left and right."""
    height, width, small_height, small_width, row_units, pieces, batch = axes[0]
    scale_y, half_y, scale_x, half_x = axes[1]
    if INNER:
        pixel_step = classes
        class_step = 1
    else:
        pixel_step = 1
        class_step = small_height * small_width
    lanes: tl.constexpr = b_class.shape[1]
    in_map = b_number < (small_height + 1) * row_units
    b_cell_y = tl.minimum(b_number // row_units, small_height)
    b_unit = tl.minimum(b_number - b_cell_y * row_units, row_units - 1)
    b_cell_x, b_begin, b_end, weights = unit_columns(
        b_unit, pieces, small_width, width, scale_x, half_x, SLOTS
    )
    b_first, b_second = cell_inputs(b_cell_x, small_width)
    b_top, b_bottom = cell_inputs(b_cell_y, small_height)
    b_y = cell_begin(b_cell_y, small_height, height, scale_y, half_y)
    b_last = cell_begin(b_cell_y + 1, small_height, height, scale_y, half_y)
    b_last = tl.where(in_map, b_last, b_y)
    p_row = (batch * height + b_y) * width + b_begin
    p_lanes = p_item + b_class.to(tl.int64) * class_step
    p_tl = p_lanes + (b_top * small_width + b_first).to(tl.int64) * pixel_step
    p_tr = p_lanes + (b_top * small_width + b_second).to(tl.int64) * pixel_step
    p_bl = p_lanes + (b_bottom * small_width + b_first).to(tl.int64) * pixel_step
    p_br = p_lanes + (b_bottom * small_width + b_second).to(tl.int64) * pixel_step
    b_none = tl.zeros([b_begin.shape[0], lanes], tl.float32)
    tops = ()
    bottoms = ()
    sums = ()
    nothing = ()
    for q in tl.static_range(GROUP // VECTOR):
        mask = q * lanes + b_class < classes
        offset = q * lanes * class_step
        b_tl = tl.load(p_tl + offset, mask=mask, other=0.0).to(tl.float32)
        b_tr = tl.load(p_tr + offset, mask=mask, other=0.0).to(tl.float32)
        b_bl = tl.load(p_bl + offset, mask=mask, other=0.0).to(tl.float32)
        b_br = tl.load(p_br + offset, mask=mask, other=0.0).to(tl.float32)
        if not EXACT:
            b_bl -= b_tl
            b_br -= b_tr
        tops += (b_tl, b_tr)
        bottoms += (b_bl, b_br)
        sums += (b_none, b_none, b_none, b_none)
        nothing += (b_none, b_none)
    steps = tl.max(tl.max(b_last - b_y, axis=1), axis=0)
    for step in range(steps):
        is_row = b_y + step < b_last
        b_down = second_weight(b_y + step, b_top, scale_y, half_y)
        lefts = ()
        rights = ()
        for q in tl.static_range(GROUP // VECTOR):
            b_left = between(tops[2 * q], bottoms[2 * q], b_down, EXACT)
            b_right = between(tops[2 * q + 1], bottoms[2 * q + 1], b_down, EXACT)
            if not EXACT:
                b_right -= b_left
            lefts += (b_left,)
            rights += (b_right,)
        of_row = nothing
        if EXACT:
            # Taken by few programs, if any: small, and with few registers.
            for t in range(SLOTS):
                reads = is_row & (b_begin + t < b_end)
                pixel = load_pixels(grads, p_row + step * width + t, reads, classes, options)
                b_weight = second_weight(b_begin + t, b_first, scale_x, half_x)
                of_row = add_slot(of_row, lefts, rights, b_weight, pixel, b_class, EXACT)
        else:
            for t in tl.static_range(SLOTS):
                reads = is_row & (b_begin + t < b_end)
                pixel = load_pixels(grads, p_row + step * width + t, reads, classes, options)
                of_row = add_slot(of_row, lefts, rights, weights[t], pixel, b_class, EXACT)
        before = sums
        sums = ()
        for q in tl.static_range(GROUP // VECTOR):
            b_tl, b_bl = share_out(before[4 * q], before[4 * q + 2], of_row[2 * q], b_down, EXACT)
            b_tr, b_br = share_out(
                before[4 * q + 1], before[4 * q + 3], of_row[2 * q + 1], b_down, EXACT
            )
            sums += (b_tl, b_tr, b_bl, b_br)
    return sums


@triton.jit
def owned_units(
    program, units, classes, UNITS: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr
):
    """Item, units [UNITS, 1] and first classes [1, LANES * VECTOR] of a program."""
    tiles = tl.cdiv(units, UNITS)
    blocks = tl.cdiv(classes, LANES * GROUP)
    b_unit = (program // blocks) % tiles * UNITS + tl.arange(0, UNITS)[:, None]
    b_class = (program % blocks) * LANES * GROUP + tl.arange(0, LANES * VECTOR)[None, :]
    return (program // (blocks * tiles)).to(tl.int64), b_unit, b_class


@triton.jit(do_not_specialize=[*UNSPECIALIZED, "has_map", "has_lse"])
def cell_gradients_kernel(
    p_grad,
    p_grad_lse,
    p_logits,
    p_target,
    p_statistics,
    p_sums,
    batches,
    classes,
    height,
    width,
    small_height,
    small_width,
    row_units,
    pieces,
    scale_y,
    half_y,
    scale_x,
    half_x,
    ignore_index,
    has_map,
    has_lse,
    UNITS: tl.constexpr,
    SLOTS: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
    INNER: tl.constexpr,
):
    """sums[corner, unit, k] = sum over the pixels of a unit of the corner's weight * d[k].

    d[k] = (grad + grad_lse) * exp((l[k] - m) - rest) - grad * [k = target], 0 where the target is
    no class; l, m and rest as in cross_entropy_kernel. p_grad [B, H, W], or a scalar for all pixels
    without has_map; p_grad_lse [B, H, W], read with has_lse alone; p_statistics [2, B, H, W]; all
    float32. p_target [B, H, W] int64; p_logits [B, K, h, w], or channels last with INNER. p_sums
    float32 [4, B, K, units], units last but one with INNER: top left, top right, bottom left and
    bottom right corners of the h + 1 rows of row_units units. At the edges of the map, where two
    corners are the same position, the inner one of the cell, as seen from the map, has the sum of
    both.
    Grid: B * ceil(units / UNITS) * ceil(K / (LANES * GROUP)); one program owns UNITS units of an
    item, all their rows, for a block of classes. Reads 20 bytes a pixel and block, out of the
    caches, and the logits four times; writes 16 bytes a unit and class.
    """
    if INNER:
        classes = known_multiple(classes, VECTOR)
    units = (small_height + 1) * row_units
    program = tl.program_id(0)
    batch, b_number, b_class = owned_units(program, units, classes, UNITS, LANES, VECTOR)
    grads = p_grad, p_grad_lse, p_target, p_statistics
    p_item = p_logits + batch * classes * small_height * small_width
    sizes = height, width, small_height, small_width, row_units, pieces, batch
    axes = sizes, (scale_y, half_y, scale_x, half_x)
    pixels = batches.to(tl.int64) * height * width
    options = ignore_index, pixels, has_map != 0, tl.load(p_grad), has_lse != 0
    sums = walk_rows(
        *(grads, p_item, b_number, b_class, classes, axes, options),
        *(SLOTS, VECTOR, INNER, False),
    )
    b_nan = tl.zeros([UNITS, LANES * VECTOR], tl.int32)
    for n in tl.static_range(4 * GROUP // VECTOR):
        mask = (n // 4) * LANES * VECTOR + b_class < classes
        b_nan = tl.where(mask & (sums[n] != sums[n]), 1, b_nan)
    if rarely(tl.max(tl.max(b_nan, axis=1), axis=0) != 0):
        # No register holds what it needs during the walk before: nor what the stores need.
        _, b_number, b_class = owned_units(
            program + hidden_zero(1), units, classes, UNITS, LANES, VECTOR
        )
        sums = walk_rows(
            *(grads, p_item, b_number, b_class, classes, axes, options),
            *(SLOTS, VECTOR, INNER, True),
        )

    batch, b_number, b_class = owned_units(
        program + hidden_zero(2), units, classes, UNITS, LANES, VECTOR
    )
    in_map = b_number < units
    b_cell_y = b_number // row_units
    b_cell_x = (b_number - b_cell_y * row_units) // pieces
    of_corner = batches.to(tl.int64) * classes * units
    if INNER:
        p_sums += batch * classes * units + b_number.to(tl.int64) * classes
        sum_step = 1
    else:
        p_sums += batch * classes * units + b_number
        sum_step = units
    p_sums += b_class.to(tl.int64) * sum_step
    for q in tl.static_range(GROUP // VECTOR):
        b_tl, b_tr, b_bl, b_br = sums[4 * q], sums[4 * q + 1], sums[4 * q + 2], sums[4 * q + 3]
        b_both = b_tl + b_tr
        b_tl = tl.where(b_cell_x == small_width, b_both, b_tl)
        b_tr = tl.where(b_cell_x == 0, b_both, b_tr)
        b_both = b_bl + b_br
        b_bl = tl.where(b_cell_x == small_width, b_both, b_bl)
        b_br = tl.where(b_cell_x == 0, b_both, b_br)
        b_both = b_tl + b_bl
        b_tl = tl.where(b_cell_y == small_height, b_both, b_tl)
        b_bl = tl.where(b_cell_y == 0, b_both, b_bl)
        b_both = b_tr + b_br
        b_tr = tl.where(b_cell_y == small_height, b_both, b_tr)
        b_br = tl.where(b_cell_y == 0, b_both, b_br)
        mask = in_map & (q * LANES * VECTOR + b_class < classes)
        p_out = p_sums + q * LANES * VECTOR * sum_step
        tl.store(p_out, b_tl, mask=mask)
        tl.store(p_out + of_corner, b_tr, mask=mask)
        tl.store(p_out + 2 * of_corner, b_bl, mask=mask)
        tl.store(p_out + 3 * of_corner, b_br, mask=mask)


# Registers that the cells' sums need without a spill, by major compute capability.
REGISTERS = {184: (9,), 192: (8, 10, 12)}


def tile_launch(slots: int, inner: bool, vector: int, registers: int) -> Launch:
    if inner and vector == 1:
        registers = 255  # classes that are loaded one by one need an address each
    return cells_launch(1, registers, 4, slots, inner, vector)


def backward(
    grad: torch.Tensor,
    grad_lse: torch.Tensor | None,
    logits: torch.Tensor,
    target: torch.Tensor,
    statistics: torch.Tensor,
    ignore_index: int,
    align_corners: bool,
) -> torch.Tensor:
    """dlogits like logits, for float32 gradients of the losses and of the log-sum-exps.

    grad: of every pixel, or a scalar for all.
    """
    inner = is_channels_inner(logits)
    batch, classes, small_height, small_width = logits.shape
    height, width = target.shape[1:]
    rows = Axis.of(small_height, height, align_corners)
    columns = Axis.of(small_width, width, align_corners)
    vector = class_vector(logits)
    registers = 184 if generation_of(logits) in REGISTERS[184] else 192
    launch = tile_launch(columns.slots, inner, vector, registers)
    dlogits = empty_map(logits.shape, logits, inner)
    units = (small_height + 1) * columns.units
    sums = logits.new_empty(4 * batch * classes * units, dtype=torch.float32)
    blocks = triton.cdiv(classes, launch.constants["LANES"] * GROUP.value)
    with device_guard(logits):
        run(
            cell_gradients_kernel,
            batch * triton.cdiv(units, launch.constants["UNITS"]) * blocks,
            aligned_storage(grad),
            aligned_storage(grad if grad_lse is None else grad_lse),
            *map(aligned_storage, (logits, target, statistics)),
            sums,
            batch,
            classes,
            height,
            width,
            small_height,
            small_width,
            columns.units,
            columns.pieces,
            rows.scale,
            rows.half,
            columns.scale,
            columns.half,
            ignore_index,
            int(grad.dim() > 0),
            int(grad_lse is not None),
            launch=launch,
        )
        join_cells(sums, dlogits, columns.pieces, inner, vector)
    return dlogits


def aot_cases() -> list[AotCase]:
    """Every compilation that `backward` can ask for."""
    others = {"p_grad": "fp32", "p_grad_lse": "fp32", "p_target": "i64", "p_statistics": "fp32"}
    others["p_sums"] = "fp32"
    cases = []
    for dtype in TRITON_DTYPES.values():
        for inner, vector in ((False, 1), *product((True,), CLASS_VECTORS[dtype])):
            cases += [
                AotCase(
                    cell_gradients_kernel,
                    {"p_logits": dtype, **others},
                    tile_launch(slots, inner, vector, registers),
                    NUMBERS,
                    generations,
                )
                for slots in SLOTS
                for registers, generations in REGISTERS.items()
            ]
    return cases
