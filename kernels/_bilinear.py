"""Bilinear resizing along one axis, in PyTorch's arithmetic, for kernels that resize on the fly.

Output i reads the inputs first(i) and second(i) = first(i) + 1 (the last one twice) with the
weights 1 - w(i) and w(i). Where the second would weigh nothing, both are the first one, a half
each: a neighbour of weight 0 is not read, and nothing is multiplied by 0, which makes NaN of
infinity.
"""

from __future__ import annotations

import torch
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
def mix(b_first, b_second, weight):
    """(1 - w) first + w second, with the same roundings wherever it is compiled into."""
    return tl.fma(weight, b_second, (1.0 - weight) * b_first)


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


@triton.jit
def reader_range(b_source, inputs, outputs, align_corners):
    """begin and end of the outputs that read each input: [begin, end), empty if none does."""
    # The interpreter cannot combine a scalar's condition with a vector's: all become vectors.
    inputs = inputs + tl.zeros_like(b_source)
    outputs = outputs + tl.zeros_like(b_source)
    b_begin = readers_begin(b_source, inputs, outputs, align_corners)
    b_end = readers_end(b_source, inputs, outputs, align_corners)
    # The bounds are loose by a few outputs, each of which would cost a whole step of a loop.
    for _ in tl.static_range(3):
        _, b_second, _ = resize_pair(b_begin, inputs, outputs, align_corners)
        b_begin = tl.where((b_second < b_source) & (b_begin < b_end), b_begin + 1, b_begin)
        b_first, _, _ = resize_pair(b_end - 1, inputs, outputs, align_corners)
        b_end = tl.where((b_first > b_source) & (b_begin < b_end), b_end - 1, b_end)
    return b_begin, b_end


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


def refuse_map(small: torch.Tensor, height: int, width: int) -> str | None:
    """The reason why the index arithmetic cannot serve `small` [B, K, h, w] and H x W pixels."""
    for rows, columns in ((height, width), tuple(small.shape[2:])):
        if rows * columns >= 2**31 - 1024 or max(rows, columns) >= 2**24:
            return "triton: maps must have fewer than 2**31 pixels and sides below 2**24"
    # A program owns 512 pixels or small positions times classes, or more of them.
    batch, classes = small.shape[:2]
    pixels = max(height * width + 512, small.shape[2] * (small.shape[3] + 32))
    if batch * pixels * (classes + 64) >= 2**40:
        return "triton: the map is too large for one grid"
    return None
