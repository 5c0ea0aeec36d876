"""Sums of tiles: written as they are, or as partial sums that a second kernel adds up.

The hidden channels of a small map go to several programs, each of which has a part of every sum.
Those of a contiguous map are turned by the second kernel on the way.
"""

from __future__ import annotations

from itertools import product

import torch
import triton
import triton.language as tl

from ..._layout import is_channels_inner
from .._launch import TRITON_DTYPES, AotCase, Launch, run
from .._multiples import FACTORS, known_multiple
from .tiles import load_vector, own_pixels, store_pixels

POSITIONS, CHANNELS = 32, 64  # of a program


@triton.jit
def store_sums(sums, out, tile, split, channels, PIECE: tl.constexpr):
    """Stores pieces [OWN, PIECE] of a tile's sums.

    out: p_parts [splits, B, H, W, K] float32; p_bias [K], and whether it is there; p_out
    [B, H, W, K]. split: number of the part, items, and whether to write out instead (not 0).
    """
    p_parts, p_bias, there, p_out = out
    number, items, direct = split
    b_pixel, in_own = own_pixels(tile)
    area = tile.height * tile.width
    for i in tl.static_range(len(sums)):
        b_channel = i * PIECE + tl.arange(0, PIECE)
        if direct != 0:
            b_bias = load_vector(p_bias, b_channel, channels, there)
            p_item = p_out + tile.item * channels * area
            b_out = sums[i] + b_bias[None, :]
            store_pixels(p_item, b_out, b_pixel, in_own, b_channel, channels, area, True)
        else:
            p_part = p_parts + (number * tl.cast(items, tl.int64) + tile.item) * channels * area
            store_pixels(p_part, sums[i], b_pixel, in_own, b_channel, channels, area, True)


@triton.jit(do_not_specialize=["outputs", "positions", "area", "splits", "there"])
def feed_forward_sums_kernel(
    p_parts,
    p_bias,
    p_out,
    outputs,
    positions,
    area,
    splits,
    there,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    INNER: tl.constexpr,
    MULTIPLE: tl.constexpr,
):
    """out = sum over the splits of parts, plus a bias if it is `there`.

    p_parts [splits, B * H * W, K] float32, p_bias [K]; p_out [B, K, H, W], or channels last.
    Grid: ceil(B * H * W / POSITIONS) * ceil(K / CHANNELS); one program owns a few channels of some
    positions. Reads all parts and writes out once.
    """
    outputs = known_multiple(outputs, MULTIPLE)
    blocks = tl.cdiv(outputs, CHANNELS)
    tile = tl.program_id(0) // blocks
    b_position = tile * POSITIONS + tl.arange(0, POSITIONS)
    b_channel = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    in_map, in_channels = b_position < positions, b_channel < outputs
    b_bias = load_vector(p_bias, b_channel, outputs, there)
    mask = in_map[:, None] & in_channels[None, :]
    p_part = p_parts + (b_position[:, None] * outputs + b_channel[None, :])
    b_sum = tl.zeros([POSITIONS, CHANNELS], tl.float32) + b_bias[None, :]
    for _split in range(splits):
        b_sum += tl.load(p_part, mask=mask, other=0.0)
        p_part += tl.cast(positions, tl.int64) * outputs
    # Positions of all items: pixels of one item, but for where it begins in contiguous maps.
    b_pixel = b_position
    if not INNER:
        b_pixel += b_position // area * (outputs - 1) * area
    store_pixels(p_out, b_sum, b_pixel, in_map, b_channel, outputs, area, INNER)


def sums_launch(inner: bool, multiple: int) -> Launch:
    constants = {"POSITIONS": POSITIONS, "CHANNELS": CHANNELS, "INNER": inner}
    return Launch(constants | {"MULTIPLE": multiple}, warps=4, registers=255)


class Parts:
    """The partial sums [splits, B, H, W, K] of an output; none where it is written directly."""

    def __init__(self, out: torch.Tensor, splits: int) -> None:
        batch, outputs, height, width = out.shape
        self.out = out
        self.inner = is_channels_inner(out)
        self.direct = splits == 1 and (self.inner or outputs == 1 or height * width == 1)
        shape = (0 if self.direct else splits, batch, height, width, outputs)
        self.sums = out.new_empty(shape, dtype=torch.float32)

    def finish(self, bias: torch.Tensor, there: int, multiple: int) -> None:
        """out = the sum of the parts, plus a bias if it is `there`."""
        if self.direct:
            return
        splits, batch, height, width, outputs = self.sums.shape
        positions = batch * height * width
        programs = triton.cdiv(positions, POSITIONS) * triton.cdiv(outputs, CHANNELS)
        sizes = (outputs, positions, height * width, splits, there)
        launch = sums_launch(self.inner, multiple)
        run(feed_forward_sums_kernel, programs, self.sums, bias, self.out, *sizes, launch=launch)


def aot_cases() -> list[AotCase]:
    """Every compilation of feed_forward_sums_kernel."""
    cases = []
    for dtype in TRITON_DTYPES.values():
        pointers = {"p_parts": "fp32", "p_bias": dtype, "p_out": dtype}
        for inner, multiple in product((False, True), FACTORS[dtype]):
            launch = sums_launch(inner, multiple)
            cases.append(AotCase(feed_forward_sums_kernel, pointers, launch))
    return cases
