"""Triton forward of upsample_argmax: labels straight from the small map.

A thread walks over the classes, GROUP at a time, with the pixels of a unit (_cells.py), and keeps
the largest logit of each pixel and the group that it was in. The class is looked for in that group
alone, at the end.
"""

from __future__ import annotations

import functools
from itertools import product

import torch
import triton
import triton.language as tl

from ..._layout import is_channels_inner
from .._bilinear import refuse_map
from .._cells import (
    CLASS_VECTORS,
    GROUP,
    SLOTS,
    Axis,
    between,
    class_vector,
    corner_pointers,
    lane_max,
    load_columns,
    owned_units,
    refuse_sides,
)
from .._launch import TRITON_DTYPES, AotCase, Launch, on_device, refuse_tensor, run
from .._multiples import known_multiple
from .._rare import hidden_zero, rarely

UNSPECIALIZED = [
    "classes",
    "height",
    "width",
    "small_height",
    "small_width",
    "row_units",
    "pieces",
    "scale_y",
    "half_y",
    "scale_x",
    "half_x",
]


@triton.jit
def shifted(pointers, offset):
    """Four tensors of pointers, moved on."""
    return pointers[0] + offset, pointers[1] + offset, pointers[2] + offset, pointers[3] + offset


@triton.jit
def columns_at(corners, offset, b_down):
    """Scores of the left column of units, and what the right one has more: `load_columns`."""
    p_tl, p_tr, p_bl, p_br = shifted(corners, offset)
    b_tl = tl.load(p_tl).to(tl.float32)
    b_tr = tl.load(p_tr).to(tl.float32)
    b_left = tl.fma(b_down, tl.load(p_bl).to(tl.float32) - b_tl, b_tl)
    b_right = tl.fma(b_down, tl.load(p_br).to(tl.float32) - b_tr, b_tr)
    return b_left, b_right - b_left


@triton.jit
def walk_groups(corners, b_down, weights, classes, class_step, VECTOR: tl.constexpr):
    """Of every slot [UNITS, 1]: the largest logit, and the first class of the first group with it.

    And what is NaN where a logit may not be what the map says, or is not finite.
    """
    b_none = b_down * 0.0 - float("inf")
    b_poison = tl.zeros([b_down.shape[0], VECTOR], tl.float32)
    largest = ()
    groups = ()
    for _ in tl.static_range(len(weights)):
        largest += (b_none,)
        groups += (tl.zeros([b_down.shape[0], 1], tl.int32),)
    for start in range(0, classes, GROUP):
        lefts = ()
        rights = ()
        for q in tl.static_range(GROUP // VECTOR):
            # Beyond the last class the last ones again: they change nothing.
            at = tl.minimum(start + q * VECTOR, classes - VECTOR)
            b_left, b_right = columns_at(corners, at.to(tl.int64) * class_step, b_down)
            b_poison = tl.fma(b_right, 0.0, b_poison)
            lefts += (b_left,)
            rights += (b_right,)
        old_largest, old_groups = largest, groups
        largest = ()
        groups = ()
        for t in tl.static_range(len(weights)):
            b_most = between(lefts[0], rights[0], weights[t], EXACT=False)
            for q in tl.static_range(1, GROUP // VECTOR):
                b_most = tl.maximum(b_most, between(lefts[q], rights[q], weights[t], EXACT=False))
            b_most = lane_max(b_most, VECTOR)
            groups += (tl.where(b_most > old_largest[t], start, old_groups[t]),)
            largest += (tl.maximum(b_most, old_largest[t]),)
    return largest, groups, b_poison


@triton.jit
def find_classes(
    corners, b_down, weights, largest, groups, classes, class_step, VECTOR: tl.constexpr
):
    """The first class of every slot's group whose logit is the largest one."""
    labels = ()
    b_class = tl.arange(0, VECTOR)[None, :]
    for t in tl.static_range(len(weights)):
        b_label = groups[t] + GROUP
        # In two steps, where a class at a time is loaded: an address each takes registers.
        for start in range(0, hidden_zero(1) + GROUP, GROUP // 2 if VECTOR == 1 else GROUP):
            for q in tl.static_range(GROUP // 2 if VECTOR == 1 else GROUP // VECTOR):
                b_at = tl.minimum(groups[t] + start + q * VECTOR, classes - VECTOR)
                b_left, b_right = columns_at(corners, b_at.to(tl.int64) * class_step, b_down)
                b_logit = between(b_left, b_right, weights[t], EXACT=False)
                b_found = tl.where(b_logit == largest[t], b_at + b_class, groups[t] + GROUP)
                b_label = tl.minimum(b_label, tl.min(b_found, axis=1, keep_dims=True))
        labels += (b_label,)
    return labels


@triton.jit
def walk_one_by_one(corners, b_down, weights, classes, class_step):
    """The classes of every slot, whatever the logits are; NaN is the largest."""
    largest = ()
    labels = ()
    for _ in tl.static_range(len(weights)):
        largest += (b_down * 0.0 - float("inf"),)
        labels += (tl.zeros([b_down.shape[0], 1], tl.int32),)
    for k in range(classes):
        at = classes * 0 + k  # a tensor for the interpreter too
        at_class = shifted(corners, at.to(tl.int64) * class_step)
        b_left, b_right = load_columns(at_class, b_down, b_down == b_down, EXACT=True)
        old_largest, old_labels = largest, labels
        largest = ()
        labels = ()
        for t in tl.static_range(len(weights)):
            b_logit = between(b_left, b_right, weights[t], EXACT=True)
            b_best = old_largest[t]
            b_better = (b_logit > b_best) | ((b_logit != b_logit) & (b_best == b_best))
            largest += (tl.where(b_better, b_logit, b_best),)
            labels += (tl.where(b_better, k, old_labels[t]),)
    return labels


@triton.jit(do_not_specialize=UNSPECIALIZED)
def argmax_kernel(
    p_logits,
    p_out,
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
    UNITS: tl.constexpr,
    SLOTS: tl.constexpr,
    VECTOR: tl.constexpr,
    INNER: tl.constexpr,
):
    """out = argmax over k of resize(logits)[k]; the first of equal classes, the first NaN.

    p_logits [B, K, h, w], or channels last with INNER; p_out [B, H, W] int64.
    Grid: B * ceil(H * row_units / UNITS); one program owns UNITS units of an item, each in one row,
    for all classes, with a thread a unit.
    Reads the logits out of the caches, 4 / SLOTS a pixel and class; writes 8 bytes a pixel.
    """
    if INNER:
        classes = known_multiple(classes, VECTOR)
        pixel_step = classes
        class_step = 1
    else:
        pixel_step = 1
        class_step = small_height * small_width
    sizes = (height, width, small_height, small_width)
    axes = (scale_y, half_y, scale_x, half_x)
    batch, lines, units, rows, columns = owned_units(sizes, axes, row_units, pieces, UNITS, SLOTS)
    b_row, in_map = lines
    b_begin, b_end, weights = units
    b_down = rows[2]
    p_item = p_logits + batch * classes * small_height * small_width
    pixels = corner_pointers(p_item, rows, columns, pixel_step)
    corners = shifted(pixels, tl.arange(0, VECTOR)[None, :].to(tl.int64) * class_step)
    largest, groups, b_poison = walk_groups(corners, b_down, weights, classes, class_step, VECTOR)
    labels = groups
    b_nan = tl.max((b_poison != b_poison).to(tl.int32), axis=1)
    if rarely(tl.max(b_nan, axis=0) != 0):
        labels = walk_one_by_one(pixels, b_down, weights, classes, class_step)
    else:
        labels = find_classes(
            corners, b_down, weights, largest, groups, classes, class_step, VECTOR
        )
    p_row = p_out + (batch * height + b_row) * width + b_begin
    for t in tl.static_range(SLOTS):
        mask = in_map & (b_begin + t < b_end)
        tl.store(p_row + t, labels[t].to(tl.int64), mask=mask)


@functools.cache
def tile_launch(slots: int, inner: bool, vector: int) -> Launch:
    constants = {"UNITS": 128, "SLOTS": slots, "VECTOR": vector, "INNER": inner}
    return Launch(constants, warps=4, registers=168 if vector == 1 else 128)


def forward(
    logits: torch.Tensor, height: int, width: int, align_corners: bool
) -> tuple[torch.Tensor]:
    """Labels [B, H, W], int64."""
    batch, classes, small_height, small_width = logits.shape
    rows = Axis.of(small_height, height, align_corners)
    columns = Axis.of(small_width, width, align_corners)
    launch = tile_launch(columns.slots, is_channels_inner(logits), class_vector(logits))
    out = logits.new_empty((batch, height, width), dtype=torch.int64)
    with on_device(logits) as (logits,):
        run(
            argmax_kernel,
            batch * triton.cdiv(height * columns.units, launch.constants["UNITS"]),
            logits,
            out,
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
            launch=launch,
        )
    return (out,)


def refuse(logits: torch.Tensor, height: int, width: int, align_corners: bool) -> str | None:
    """The reason why this kernel cannot run an input, None if it can."""
    sizes = height, width
    return refuse_map(logits, *sizes) or refuse_sides(logits, *sizes) or refuse_tensor(logits)


def aot_cases() -> list[AotCase]:
    """Every compilation that `forward` can ask for."""
    pointers = {"p_out": "i64"}
    numbers = dict.fromkeys(("scale_y", "half_y", "scale_x", "half_x"), "fp32")
    return [
        AotCase(argmax_kernel, {"p_logits": dtype, **pointers}, launch, numbers)
        for dtype, slots in product(TRITON_DTYPES.values(), SLOTS)
        for launch in (
            tile_launch(slots, False, 1),
            *(tile_launch(slots, True, vector) for vector in CLASS_VECTORS[dtype]),
        )
    ]
