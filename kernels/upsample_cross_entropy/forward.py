"""Triton forward of upsample_cross_entropy: losses straight from the small map, and their sums.

A thread walks over the classes, GROUP at a time, with the pixels of a unit (_cells.py). For each
pixel it keeps the largest logit that it met and the sum of exponentials relative to it, which it
scales once a group (Milakov and Gimelshein, Online normalizer calculation for softmax, 2018); the
lanes of a pixel meet at the end.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl

from ..._layout import is_channels_inner
from ...upsample_cross_entropy import MEAN, MEAN_OF_ALL, NONE, SUM
from .._bilinear import refuse_map
from .._cells import (
    CLASS_VECTORS,
    GROUP,
    SLOTS,
    Axis,
    between,
    cells_launch,
    class_vector,
    corner_pointers,
    fast_exp,
    lane_max,
    lane_sum,
    load_columns,
    of_lanes,
    owned_units,
    refuse_sides,
)
from .._launch import TRITON_DTYPES, AotCase, Launch, on_device, refuse_tensor, run
from .._multiples import known_multiple
from .._rare import rarely
from .total import add_both, reduce_losses

LOWEST = tl.constexpr(-3.4028234663852886e38)  # of float32


@triton.jit
def walk_classes(
    corners,
    b_down,
    weights,
    classes,
    class_step,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Of slots, for each lane [UNITS, LANES]: the largest logit, and the sum of exp(l - it)."""
    units: tl.constexpr = b_down.shape[0]
    b_class = tl.arange(0, LANES * VECTOR)[None, :]
    b_none = tl.zeros([units, LANES], tl.float32)
    largest = ()
    sums = ()
    for _ in tl.static_range(len(weights)):
        largest += (b_none + LOWEST,)
        sums += (b_none,)
    for start in range(0, classes, LANES * GROUP):
        lefts = ()
        rights = ()
        for q in tl.static_range(GROUP // VECTOR):
            at = start + q * LANES * VECTOR
            p_tl, p_tr, p_bl, p_br = corners
            offset = at.to(tl.int64) * class_step
            at_class = p_tl + offset, p_tr + offset, p_bl + offset, p_br + offset
            b_left, b_right = load_columns(at_class, b_down, at + b_class < classes, EXACT)
            lefts += (b_left,)
            rights += (b_right,)
        old_largest, old_sums = largest, sums
        largest = ()
        sums = ()
        for t in tl.static_range(len(weights)):
            logits = ()
            for q in tl.static_range(GROUP // VECTOR):
                logits += (between(lefts[q], rights[q], weights[t], EXACT),)
            b_most = logits[0]
            for q in tl.static_range(1, GROUP // VECTOR):
                b_most = tl.maximum(b_most, logits[q])
            b_most = tl.maximum(old_largest[t], lane_max(b_most, VECTOR))
            b_of = of_lanes(b_most, VECTOR)
            b_terms = fast_exp(logits[0] - b_of)
            for q in tl.static_range(1, GROUP // VECTOR):
                b_terms += fast_exp(logits[q] - b_of)
            b_sum = old_sums[t] * fast_exp(old_largest[t] - b_most)
            largest += (b_most,)
            sums += (b_sum + lane_sum(b_terms, VECTOR),)
    return largest, sums


@triton.jit
def flat(b_values, LANES: tl.constexpr):
    """Values [UNITS, 1] or [UNITS, LANES] as [UNITS * LANES]: a thread each."""
    units: tl.constexpr = b_values.shape[0]
    return tl.reshape(tl.broadcast_to(b_values, [units, LANES]), [units * LANES])


@triton.jit
def slot_of_lanes(values, ROUND: tl.constexpr, LANES: tl.constexpr):
    """Lane q [UNITS, LANES] has the value of slot ROUND * LANES + q, which all lanes share."""
    b_lane = tl.arange(0, LANES)[None, :]
    b_value = values[ROUND * LANES] + b_lane * 0.0
    for q in tl.static_range(1, LANES):
        if ROUND * LANES + q < len(values):
            b_value = tl.where(b_lane == q, values[ROUND * LANES + q], b_value)
    return b_value


@triton.jit
def blend(b_tl, b_tr, b_bl, b_br, b_down, b_weight, EXACT: tl.constexpr):
    """The scores between four, rounded as in the walk over the classes."""
    if not EXACT:
        b_bl -= b_tl
        b_br -= b_tr
    b_left = between(b_tl, b_bl, b_down, EXACT)
    b_right = between(b_tr, b_br, b_down, EXACT)
    if not EXACT:
        b_right -= b_left
    return between(b_left, b_right, b_weight, EXACT)


@triton.jit
def logit_at(corners, b_offset, b_down, b_weight, EXACT: tl.constexpr):
    """The resized score of one class a pixel, `b_offset` elements behind the corners."""
    p_tl, p_tr, p_bl, p_br = corners
    b_tl = tl.load(p_tl + b_offset).to(tl.float32)
    b_tr = tl.load(p_tr + b_offset).to(tl.float32)
    b_bl = tl.load(p_bl + b_offset).to(tl.float32)
    b_br = tl.load(p_br + b_offset).to(tl.float32)
    return blend(b_tl, b_tr, b_bl, b_br, b_down, b_weight, EXACT)


UNSPECIALIZED = [
    "batches",
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
    "ignore_index",
]
OPTIONS = ["weighted", "reduces"]
NUMBERS = dict.fromkeys(("scale_y", "half_y", "scale_x", "half_x"), "fp32")


@triton.jit(do_not_specialize=[*UNSPECIALIZED, *OPTIONS])
def cross_entropy_kernel(
    p_logits,
    p_target,
    p_weight,
    p_loss,
    p_statistics,
    p_partials,
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
    weighted,
    reduces,
    UNITS: tl.constexpr,
    SLOTS: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
    INNER: tl.constexpr,
):
    """loss = rest - (l[target] - m), m = max over k of l[k], rest = log(sum over k exp(l[k] - m)).

    l is resize(logits) at a pixel. p_logits [B, K, h, w], or channels last with INNER; p_target
    [B, H, W] int64; p_loss [B, H, W] and p_statistics [2, B, H, W], which is m and rest, float32.
    The loss is 0 at ignored pixels and NaN where the target is no class. With `reduces` p_loss
    stays as it is, and p_partials [2, programs] float32 get a program's sums over valid pixels of
    weight[target] * loss, and of weight[target]: p_weight [K] float32, or 1 unless `weighted`.
    Grid: B * ceil(H * row_units / UNITS); one program owns UNITS units of an item, each in one row,
    for all classes, with LANES threads a unit.
    Reads the logits out of the caches, 4 / SLOTS a pixel and class, and 8 bytes a pixel; writes 12,
    or 8 with `reduces`.
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
    b_top, b_bottom, b_down = rows
    b_first, b_second = columns
    p_item = p_logits + batch * classes * small_height * small_width
    p_lanes = p_item + tl.arange(0, LANES * VECTOR)[None, :].to(tl.int64) * class_step
    corners = corner_pointers(p_lanes, rows, columns, pixel_step)
    largest, sums = walk_classes(
        corners, b_down, weights, classes, class_step, LANES, VECTOR, EXACT=False
    )
    b_nan = sums[0] != sums[0]
    for t in tl.static_range(1, SLOTS):
        b_nan = b_nan | (sums[t] != sums[t])
    has_nan = tl.max(tl.max(b_nan.to(tl.int32), axis=1), axis=0) != 0
    if rarely(has_nan):
        largest, sums = walk_classes(
            corners, b_down, weights, classes, class_step, LANES, VECTOR, EXACT=True
        )

    finals = ()
    totals = ()
    for t in tl.static_range(SLOTS):
        b_m = tl.max(largest[t], axis=1, keep_dims=True)
        finals += (b_m,)
        b_total = tl.sum(sums[t] * fast_exp(largest[t] - b_m), axis=1, keep_dims=True)
        totals += (b_total,)
    area = (height * width).to(tl.int64)
    p_target += batch * area
    p_loss += batch * area
    p_statistics += batch * area
    p_rest = p_statistics + batches * area
    b_down = flat(b_down, LANES)
    rows = flat(b_top, LANES), flat(b_bottom, LANES), b_down
    columns = flat(b_first, LANES), flat(b_second, LANES)
    corners = corner_pointers(p_item, rows, columns, pixel_step)
    b_sum = tl.zeros([UNITS * LANES], tl.float32)
    b_weights = tl.zeros([UNITS * LANES], tl.float32)
    for r in tl.static_range((SLOTS + LANES - 1) // LANES):
        b_slot = r * LANES + tl.arange(0, LANES)[None, :]
        b_x = b_begin + b_slot
        mask = flat(in_map & (b_x < b_end) & (b_slot < SLOTS), LANES)
        b_at = flat(b_row * width + b_x, LANES)
        b_target = tl.load(p_target + b_at, mask=mask, other=ignore_index)
        is_class = b_target.to(tl.uint64, bitcast=True) < classes.to(tl.uint64)
        counts = b_target != ignore_index
        b_class = tl.where(is_class, b_target, 0)
        b_right = flat(slot_of_lanes(weights, r, LANES), LANES)
        b_true = logit_at(corners, b_class * class_step, b_down, b_right, EXACT=False)
        if rarely(has_nan):
            b_true = logit_at(corners, b_class * class_step, b_down, b_right, EXACT=True)
        b_m = flat(slot_of_lanes(finals, r, LANES), LANES)
        b_rest = tl.log(flat(slot_of_lanes(totals, r, LANES), LANES))
        b_loss = tl.where(is_class, b_rest - (b_true - b_m), float("nan"))
        b_loss = tl.where(counts, b_loss, 0.0)
        tl.store(p_statistics + b_at, b_m, mask=mask)
        tl.store(p_rest + b_at, b_rest, mask=mask)
        if reduces == 0:
            tl.store(p_loss + b_at, b_loss, mask=mask)
        b_weight = tl.where(counts, 1.0, 0.0)
        if weighted != 0:
            b_weight = tl.load(p_weight + b_class, mask=counts, other=0.0)
        b_sum = tl.fma(b_weight, b_loss, b_sum)
        b_weights += b_weight
    if reduces != 0:
        loss, total = tl.reduce((b_sum, b_weights), 0, add_both)
        p_partials += tl.program_id(0)
        tl.store(p_partials, loss)
        tl.store(p_partials + tl.num_programs(0), total)


def tile_launch(slots: int, inner: bool, vector: int) -> Launch:
    return cells_launch(4, 128, 2, slots, inner, vector)


def forward(
    logits: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    ignore_index: int,
    align_corners: bool,
    reduces: int,
    wide: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Losses, statistics [2, B, H, W] and share, as `attnops.upsample_cross_entropy` has them."""
    batch, height, width = target.shape
    classes, small_height, small_width = logits.shape[1:]
    rows = Axis.of(small_height, height, align_corners)
    columns = Axis.of(small_width, width, align_corners)
    launch = tile_launch(columns.slots, is_channels_inner(logits), class_vector(logits))
    programs = batch * triton.cdiv(height * columns.units, launch.constants["UNITS"])
    statistics = logits.new_empty((2, *target.shape), dtype=torch.float32)
    if reduces == NONE:
        loss = logits.new_empty(target.shape, dtype=torch.float32)
        share, partials = statistics.new_empty((0,)), loss
    else:
        loss = logits.new_empty((), dtype=torch.float32 if wide else logits.dtype)
        share, partials = statistics.new_empty(()), statistics.new_empty((2, programs))
    with on_device(logits, target, statistics if weight is None else weight) as (
        logits,
        target,
        given,
    ):
        run(
            cross_entropy_kernel,
            programs,
            logits,
            target,
            given,
            loss if reduces == NONE else statistics,
            statistics,
            partials,
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
            int(weight is not None),
            int(reduces != NONE),
            launch=launch,
        )
        if reduces != NONE:
            divisors = {SUM: 1.0, MEAN: 0.0, MEAN_OF_ALL: float(target.numel())}
            reduce_losses(partials, loss, share, divisors[reduces])
    return loss, statistics, share


def refuse(
    logits: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    ignore_index: int,
    *options: Any,
) -> str | None:
    """The reason why these kernels cannot run an input, None if they can."""
    if not -(2**31) <= ignore_index < 2**31:
        return f"triton: ignore_index={ignore_index} needs more than 32 bits"
    sizes = target.shape[1:]
    return refuse_map(logits, *sizes) or refuse_sides(logits, *sizes) or refuse_tensor(logits)


def aot_cases() -> list[AotCase]:
    """Every compilation that `forward` can ask for."""
    others = dict.fromkeys(("p_weight", "p_loss", "p_statistics", "p_partials"), "fp32")
    others["p_target"] = "i64"
    return [
        AotCase(cross_entropy_kernel, {"p_logits": dtype, **others}, launch, NUMBERS)
        for dtype, slots in product(TRITON_DTYPES.values(), SLOTS)
        for launch in class_launches(dtype, slots)
    ]


def class_launches(dtype: str, slots: int) -> list[Launch]:
    """Those of the variants for maps with any number of classes, in both layouts."""
    inner = [tile_launch(slots, True, vector) for vector in CLASS_VECTORS[dtype]]
    return [tile_launch(slots, False, 1), *inner]
