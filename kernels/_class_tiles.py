"""Bilinear resizing of score maps inside kernels: pixels by classes, in both layouts.

A pixel's four neighbours in the small map are found once, then read for one block of classes after
the other. Gradients are gathered: each small position visits the pixels that read it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._bilinear import readers_begin, readers_end, resize_pair


@triton.jit
def mix(b_first, b_second, weight):
    """(1 - w) first + w second, with the same roundings wherever it is compiled into."""
    return tl.fma(weight, b_second, (1.0 - weight) * b_first)


@triton.jit
def pixel_offsets(b_pixel, classes, INNER: tl.constexpr):
    """Offsets [POSITIONS, 1] of pixels within an item."""
    b_offset = b_pixel.to(tl.int64)[:, None]
    if INNER:
        b_offset = b_offset * classes
    return b_offset


@triton.jit
def class_offsets(b_class, area, INNER: tl.constexpr):
    """Offsets [1, CLASSES] of classes within an item of `area` pixels."""
    b_offset = b_class.to(tl.int64)[None, :]
    if not INNER:
        b_offset = b_offset * area
    return b_offset


@triton.jit
def corner_offsets(b_pixel, classes, sizes, align_corners, INNER: tl.constexpr):
    """Of pixels [POSITIONS]: offsets of their four neighbours, two weights; [POSITIONS, 1] each.

    sizes: height and width of the result, then of the map.
    """
    height, width, small_height, small_width = sizes
    b_row, b_column = b_pixel // width, b_pixel % width
    b_top, b_bottom, b_down = resize_pair(b_row, small_height, height, align_corners)
    b_left, b_right, b_across = resize_pair(b_column, small_width, width, align_corners)
    return (
        pixel_offsets(b_top * small_width + b_left, classes, INNER),
        pixel_offsets(b_top * small_width + b_right, classes, INNER),
        pixel_offsets(b_bottom * small_width + b_left, classes, INNER),
        pixel_offsets(b_bottom * small_width + b_right, classes, INNER),
        b_down[:, None],
        b_across[:, None],
    )


@triton.jit
def owned_pixels(area, POSITIONS: tl.constexpr):
    """Item and pixels of a program of a grid over the pixels of all items, and which there are."""
    tiles = tl.cdiv(area, POSITIONS)
    b_pixel = (tl.program_id(0) % tiles) * POSITIONS + tl.arange(0, POSITIONS)
    return (tl.program_id(0) // tiles).to(tl.int64), b_pixel, b_pixel < area


@triton.jit
def load_wide(p_values, mask):
    return tl.load(p_values, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def resized(p_scores, corners, mask):
    """Scores [POSITIONS, CLASSES] at pixels; p_scores [1, CLASSES] points at the classes, corners
    are those of `corner_offsets`."""
    b_tl, b_tr, b_bl, b_br, b_down, b_across = corners
    b_left = mix(load_wide(p_scores + b_tl, mask), load_wide(p_scores + b_bl, mask), b_down)
    b_right = mix(load_wide(p_scores + b_tr, mask), load_wide(p_scores + b_br, mask), b_down)
    return mix(b_left, b_right, b_across)


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
