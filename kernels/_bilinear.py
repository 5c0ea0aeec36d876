"""Bilinear resizing along one axis, in PyTorch's arithmetic, for kernels that resize on the fly.

Output i reads the inputs first(i) and second(i) = first(i) + 1 (the last one twice) with the
weights 1 - w(i) and w(i). Where the second would weigh nothing, both are the first one, a half
each: a neighbour of weight 0 is not read, and nothing is multiplied by 0, which makes NaN of
infinity.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def resize_scale(inputs, outputs, align_corners):
    """Inputs an output apart."""
    aligned = tl.where(outputs > 1, (inputs - 1).to(tl.float32) / tl.maximum(outputs - 1, 1), 0.0)
    return tl.where(align_corners != 0, aligned, inputs.to(tl.float32) / outputs)


@triton.jit
def resize_pair(b_output, inputs, outputs, align_corners):
    """first, second and w of every output."""
    scale = resize_scale(inputs, outputs, align_corners)
    b_index = b_output.to(tl.float32)
    half = tl.where(align_corners != 0, 0.0, 0.5)
    b_position = tl.maximum(tl.fma(b_index + half, b_index * 0.0 + scale, -half), 0.0)
    b_first = tl.minimum(b_position.to(tl.int32), inputs - 1)
    b_weight = tl.minimum(b_position - b_first.to(tl.float32), 1.0)
    same = inputs == outputs
    b_first = tl.where(same, b_output, b_first)
    alone = same | (b_weight == 0.0)
    b_second = tl.where(alone, b_first, tl.minimum(b_first + 1, inputs - 1))
    return b_first, b_second, tl.where(alone, 0.5, b_weight)


@triton.jit
def share_of(b_first, b_second, b_weight, source):
    """The weight with which each output reads the input `source`, 0 where it does not."""
    return tl.where(b_first == source, 1.0 - b_weight, 0.0) + tl.where(
        b_second == source, b_weight, 0.0
    )


@triton.jit
def readers_begin(source, inputs, outputs, align_corners):
    """An output at or before the first one that reads the input `source`."""
    scale = resize_scale(inputs, outputs, align_corners)
    half = tl.where(align_corners != 0, 0.0, 0.5)
    at = (source.to(tl.float32) - 1.0 + half) / tl.maximum(scale, 1e-20) - half
    # The last input takes what lies beyond it, all of it where nothing lies apart (scale 0).
    begin = tl.minimum(tl.maximum(at - 2.0, 0.0), outputs.to(tl.float32)).to(tl.int32)
    return tl.where((source == 0) | (scale == 0.0), 0, begin)


@triton.jit
def readers_end(source, inputs, outputs, align_corners):
    """One past the last output that reads the input `source`, or a little more."""
    scale = resize_scale(inputs, outputs, align_corners)
    half = tl.where(align_corners != 0, 0.0, 0.5)
    at = (source.to(tl.float32) + 1.0 + half) / tl.maximum(scale, 1e-20) - half
    end = tl.minimum(tl.maximum(at + 3.0, 0.0), outputs.to(tl.float32)).to(tl.int32)
    return tl.where((source == inputs - 1) | (scale == 0.0), outputs, end)


NEAR = tl.constexpr(16)  # outputs among which a bound lies that is known to a few


@triton.jit
def cell_begin(source, inputs, outputs, align_corners):
    """The first output whose first tap is `source` or lies beyond, `outputs` if none does."""
    scale = resize_scale(inputs, outputs, align_corners)
    half = tl.where(align_corners != 0, 0.0, 0.5)
    at = (source.to(tl.float32) + half) / tl.maximum(scale, 1e-20) - half
    near = tl.minimum(tl.maximum(at - 5.0, 0.0), outputs.to(tl.float32)).to(tl.int32)
    b_output = near + tl.arange(0, NEAR)
    b_first, _, _ = resize_pair(b_output, inputs, outputs, align_corners)
    before = (b_first < source) & (b_output < outputs)
    begin = near + tl.sum(before.to(tl.int32), axis=0)
    return tl.where(source == 0, 0, tl.where(source >= inputs, outputs, begin))
