"""Score maps resized cell by cell: neighbouring pixels share the corners between which they lie.

The outputs of an axis that lie between the inputs c - 1 and c are cell c, c = 0 .. inputs; the
outermost two hold what lies beyond the map. A unit is a piece of a cell, of at most SLOTS outputs.
A thread holds GROUP classes of a unit's columns; an output costs it one multiply-add a class.

The multiply-add is left + weight * (right - left). It makes NaN of infinities that the sum of two
products keeps, and a weight of 0 does not hide them; but never a number of them. So kernels look at
what they have computed, and where there is NaN compute it again with `EXACT`, which skips
neighbours of weight 0 and is right everywhere.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice

from .._layout import is_channels_inner
from ._bilinear import mix
from ._launch import INTERPRETED, Launch

SLOTS = (1, 4, 8)
GROUP = tl.constexpr(8)  # classes that a thread holds
MOST_SIDE = 2**20  # float32 tells the positions of fewer outputs apart

_INTERPRETED = tl.constexpr(INTERPRETED)
# Triton's interpreter takes as long for a large tile as for a small one.
FOR_THREADS = not INTERPRETED
_LOG2E = tl.constexpr(1.4426950408889634)


class Axis(NamedTuple):
    """How the outputs of an axis are cut, and where they lie between the inputs."""

    slots: int  # outputs of a unit at most
    pieces: int  # units of a cell
    units: int
    scale: float  # inputs an output apart
    half: float  # of a pixel, if its centre is what lies on the grid

    @classmethod
    def of(cls, inputs: int, outputs: int, align_corners: bool, slots: int = 0) -> Axis:
        """The cut into units that cost least: each as much as two outputs, and its slots."""
        if inputs == outputs:
            align_corners = True  # every output on its input, without rounding
        apart = inputs, max(outputs, 1)
        if align_corners:
            apart = max(inputs - 1, 0), max(outputs - 1, 1)
        scale = apart[0] / apart[1]
        # Outputs of a cell; roundings let in one more, unless all positions are exact.
        most = outputs
        if scale > 0:
            ratio = apart[1] / apart[0]
            exact = ratio.is_integer() and int(ratio).bit_count() == 1
            most = int(ratio) if exact else int(ratio * (1 + max(inputs, outputs) * 2**-23)) + 1
        cuts = [(n, -(-max(most, 1) // n)) for n in ((slots,) if slots else SLOTS)]
        slots, pieces = min(cuts, key=lambda cut: cut[1] * (cut[0] + 2))
        return cls(slots, pieces, pieces * (inputs + 1), scale, 0.0 if align_corners else 0.5)


CLASS_VECTORS = {"fp32": (1, 2, 4), "fp16": (1, 2, 8), "bf16": (1, 2, 8)}


def refuse_sides(small: torch.Tensor, height: int, width: int) -> str | None:
    """The reason why positions on an axis cannot be told apart, None if they can."""
    if max(*small.shape[2:], height, width) >= MOST_SIDE:
        return "triton: sides of maps must be below 2**20"
    return None


def class_vector(logits: torch.Tensor) -> int:
    """Classes that a thread loads at once: what their number is a multiple of, up to 16 bytes."""
    if not is_channels_inner(logits):
        return 1
    most = 16 // logits.element_size()
    return next(n for n in (most, 2, 1) if logits.shape[1] % n == 0)


def cells_launch(
    warps: int, registers: int, lanes: int, slots: int, inner: bool, vector: int
) -> Launch:
    """A launch with `lanes` threads a unit (contiguous maps: one, as units lie side by side)."""
    return _cells_launch(FOR_THREADS, warps, registers, lanes if inner else 1, slots, inner, vector)


@functools.cache
def _cells_launch(
    for_threads: bool,
    warps: int,
    registers: int,
    lanes: int,
    slots: int,
    inner: bool,
    vector: int,
) -> Launch:
    units = 32 * warps // lanes
    if not for_threads:
        units, lanes = 128, 8
        vector = vector if inner else GROUP.value
    constants = {"UNITS": units, "SLOTS": slots, "LANES": lanes, "VECTOR": vector, "INNER": inner}
    return Launch(constants, warps=warps, registers=registers)


@triton.jit
def positions(b_output, scale, half):
    """Where outputs lie on the axis of the inputs."""
    return tl.maximum(tl.fma(b_output.to(tl.float32) + half, b_output * 0.0 + scale, -half), 0.0)


@triton.jit
def cell_begin(b_cell, inputs, outputs, scale, half):
    """The first output of cells; `outputs` for cell inputs + 1."""
    b_corner = (b_cell - 1).to(tl.float32)
    b_begin = (b_corner + half) / tl.maximum(scale, 1e-20) - (half + 0.25)
    b_begin = tl.minimum(tl.maximum(b_begin, 0.0), outputs.to(tl.float32)).to(tl.int32)
    # What lies on the first input or before it is in cell 0.
    b_corner = tl.where(b_cell == 1, 1e-30, b_corner)
    for _ in tl.static_range(2):
        b_before = (positions(b_begin, scale, half) < b_corner) & (b_begin < outputs)
        b_begin += b_before.to(tl.int32)
    return tl.where(b_cell == 0, 0, tl.where(b_cell > inputs, outputs, b_begin))


@triton.jit
def cell_inputs(b_cell, inputs):
    """The two inputs between which the outputs of cells lie."""
    return tl.maximum(b_cell - 1, 0), tl.minimum(b_cell, inputs - 1)


@triton.jit
def second_weight(b_output, b_first, scale, half):
    """The weight of the second input of the cell in outputs."""
    return tl.minimum(positions(b_output, scale, half) - b_first.to(tl.float32), 1.0)


@triton.jit
def unit_columns(b_unit, pieces, inputs, outputs, scale, half, SLOTS: tl.constexpr):
    """Of units: cell, first output, one past the last one, and the weights of the slots."""
    b_cell = b_unit // pieces
    b_begin = cell_begin(b_cell, inputs, outputs, scale, half)
    b_begin += (b_unit - b_cell * pieces) * SLOTS
    b_end = cell_begin(b_cell + 1, inputs, outputs, scale, half)
    b_first, _ = cell_inputs(b_cell, inputs)
    weights = ()
    for t in tl.static_range(SLOTS):
        weights += (second_weight(b_begin + t, b_first, scale, half),)
    return b_cell, b_begin, tl.minimum(b_end, b_begin + SLOTS), weights


@triton.jit
def owned_units(sizes, axes, row_units, pieces, UNITS: tl.constexpr, SLOTS: tl.constexpr):
    """Units [UNITS, 1] of a program of a grid over the units of all items, each in one row.

    sizes: height and width of the result, then of the map. axes: scale and half of the rows, then
    of the columns.

    Returns the item; the rows and which of them there are; first output, end and weights of the
    slots; offsets of the two rows of the map and the weight of the second; its two columns.
    """
    height, width, small_height, small_width = sizes
    scale_y, half_y, scale_x, half_x = axes
    tiles = tl.cdiv(height * row_units, UNITS)
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    b_number = (tl.program_id(0) % tiles) * UNITS + tl.arange(0, UNITS)[:, None]
    b_row = b_number // row_units
    b_unit = b_number - b_row * row_units
    in_map = b_row < height
    b_row = tl.minimum(b_row, height - 1)
    b_cell, b_begin, b_end, weights = unit_columns(
        b_unit, pieces, small_width, width, scale_x, half_x, SLOTS
    )
    b_at = positions(b_row, scale_y, half_y)
    b_top = tl.minimum(b_at.to(tl.int32), small_height - 1)
    b_down = tl.minimum(b_at - b_top.to(tl.float32), 1.0)
    b_bottom = tl.minimum(b_top + 1, small_height - 1)
    rows = b_top * small_width, b_bottom * small_width, b_down
    columns = cell_inputs(b_cell, small_width)
    return batch, (b_row, in_map), (b_begin, b_end, weights), rows, columns


@triton.jit
def corner_pointers(p_item, rows, columns, pixel_step):
    """Pointers to the corners of cells: top left, top right, bottom left, bottom right."""
    b_top, b_bottom, _ = rows
    b_first, b_second = columns
    return (
        p_item + (b_top + b_first).to(tl.int64) * pixel_step,
        p_item + (b_top + b_second).to(tl.int64) * pixel_step,
        p_item + (b_bottom + b_first).to(tl.int64) * pixel_step,
        p_item + (b_bottom + b_second).to(tl.int64) * pixel_step,
    )


@triton.jit
def between(b_first, b_second, b_weight, EXACT: tl.constexpr):
    """Scores between two. Not EXACT: b_second is their difference."""
    if EXACT:
        b_alone = b_weight == 0.0
        b_second = tl.where(b_alone, b_first, b_second)
        b_score = mix(b_first, b_second, tl.where(b_alone, 0.5, b_weight))
    else:
        b_score = tl.fma(b_weight, b_second, b_first)
    return b_score


@triton.jit
def load_scores(p_scores, mask):
    """Scores, minus infinity beyond the last class."""
    return tl.load(p_scores, mask=mask, other=-float("inf")).to(tl.float32)


@triton.jit
def load_columns(corners, b_down, mask, EXACT: tl.constexpr):
    """Scores of the two columns of units in a row; not EXACT: of the first, and the difference.

    corners: pointers [UNITS, LANES * VECTOR] at the four pixels around units; b_down the weights
    of the lower two.
    """
    p_tl, p_tr, p_bl, p_br = corners
    b_left = load_scores(p_tl, mask)
    b_right = load_scores(p_tr, mask)
    b_below_left = load_scores(p_bl, mask)
    b_below_right = load_scores(p_br, mask)
    if not EXACT:
        b_below_left = tl.where(mask, b_below_left - b_left, 0.0)
        b_below_right = tl.where(mask, b_below_right - b_right, 0.0)
    b_left = between(b_left, b_below_left, b_down, EXACT)
    b_right = between(b_right, b_below_right, b_down, EXACT)
    if not EXACT:
        b_right = tl.where(mask, b_right - b_left, 0.0)
    return b_left, b_right


@triton.jit
def fast_exp(b_values):
    """exp, as fast as the hardware has it: 0 below the smallest normal number."""
    return fast_exp2(b_values * _LOG2E)


@triton.jit
def fast_exp2(b_values):
    """2 to the power, likewise."""
    return tl.exp2(b_values) if _INTERPRETED else libdevice.exp2(b_values)


@triton.jit
def lane_max(b_values, VECTOR: tl.constexpr):
    """Maxima [UNITS, LANES] over the VECTOR classes of each lane."""
    if VECTOR > 1:
        units: tl.constexpr = b_values.shape[0]
        lanes: tl.constexpr = b_values.shape[1] // VECTOR
        b_values = tl.max(tl.reshape(b_values, [units, lanes, VECTOR]), axis=2)
    return b_values


@triton.jit
def lane_sum(b_values, VECTOR: tl.constexpr):
    """Sums likewise."""
    if VECTOR > 1:
        units: tl.constexpr = b_values.shape[0]
        lanes: tl.constexpr = b_values.shape[1] // VECTOR
        b_values = tl.sum(tl.reshape(b_values, [units, lanes, VECTOR]), axis=2)
    return b_values


@triton.jit
def of_lanes(b_values, VECTOR: tl.constexpr):
    """Values [UNITS, LANES] for every class of the lanes."""
    if VECTOR > 1:
        units: tl.constexpr = b_values.shape[0]
        lanes: tl.constexpr = b_values.shape[1]
        b_values = tl.broadcast_to(b_values[:, :, None], [units, lanes, VECTOR])
        b_values = tl.reshape(b_values, [units, lanes * VECTOR])
    return b_values
