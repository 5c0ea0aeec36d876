"""Cells of a resized map, which the kernels of upsample_gate go through row by row.

Output rows whose first tap is row i of the small map are cell row i. Every column of it mixes the
same two rows of logits, so those are mixed along the columns once for all rows of a cell. A cell's
rows may be split among programs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..._layout import is_channels_inner
from .._bilinear import cell_begin, resize_pair
from .._launch import Launch
from .._multiples import FACTORS, known_factor

SIZES = ["channels", "height", "width", "small_height", "small_width", "splits"]
LOG2_E = tl.constexpr(1.4426950408889634)
OPTIONS = ["activation", "activation_first", "residual", "align_corners"]


@triton.jit
def activate(b_z, activation):
    """identity (0), sigmoid (1) or ReLU (2); NaN stays NaN."""
    if activation == 1:
        # A root and a power of two are an instruction each; a division and exp take eight and four.
        b_root = tl.rsqrt(1.0 + tl.exp2(-LOG2_E * b_z))
        b_z = b_root * b_root
    elif activation == 2:
        b_z = tl.where(b_z < 0, 0.0, b_z)
    return b_z


@triton.jit
def owned_cell(
    sizes,
    splits,
    align_corners,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    INNER: tl.constexpr,
):
    """What a program owns: item, cell row, split, its rows (begin, end), columns and channels.

    sizes: channels, height, width, small_height and small_width. Neighbouring programs own other
    channels of the same pixels, or other pixels of the channels.
    """
    channels, height, width, small_height, _ = sizes
    tiles = tl.cdiv(width, POSITIONS)
    blocks = tl.cdiv(channels, CHANNELS)
    rest = tl.program_id(0)
    if INNER:
        block = rest % blocks
        rest = rest // blocks
        tile = rest % tiles
        rest = rest // tiles
    else:
        tile = rest % tiles
        rest = rest // tiles
        block = rest % blocks
        rest = rest // blocks
    split = rest % splits
    rest = rest // splits
    source = rest % small_height
    batch = (rest // small_height).to(tl.int64)
    first = cell_begin(source, small_height, height, align_corners)
    last = cell_begin(source + 1, small_height, height, align_corners)
    share = tl.cdiv(last - first, splits)
    begin = first + split * share
    end = tl.minimum(begin + share, last)
    b_column = tile * POSITIONS + tl.arange(0, POSITIONS)
    b_channel = block * CHANNELS + tl.arange(0, CHANNELS)
    return batch, source, split, begin, end, b_column, b_channel


@triton.jit
def load_logits(p_row, b_column, b_channel, mask, sizes, INNER: tl.constexpr):
    """Logits [POSITIONS, CHANNELS] at columns of a row of the small map."""
    channels, _, _, small_height, small_width = sizes
    if INNER:
        p_tile = p_row + (b_column[:, None] * channels + b_channel[None, :])
    else:
        p_tile = p_row + (b_channel[None, :] * (small_height * small_width) + b_column[:, None])
    return tl.load(p_tile, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def mixed_row(
    p_item, row, b_column, b_channel, mask, sizes, first, align_corners, INNER: tl.constexpr
):
    """A row of logits [POSITIONS, CHANNELS], activated by `first`, resized along the columns."""
    channels, _, width, _, small_width = sizes
    b_inside = tl.minimum(b_column, width - 1)
    b_left, b_right, b_across = resize_pair(b_inside, small_width, width, align_corners)
    p_row = p_item + row * small_width * (channels if INNER else 1)
    b_l = load_logits(p_row, b_left, b_channel, mask, sizes, INNER)
    b_r = load_logits(p_row, b_right, b_channel, mask, sizes, INNER)
    b_l = activate(b_l, first)
    b_r = activate(b_r, first)
    return (1.0 - b_across)[:, None] * b_l + b_across[:, None] * b_r


@triton.jit
def mix_rows(b_top, b_bottom, row, sizes, align_corners):
    """Logits of an output row of a cell, and the weight of the row below (0: it is not read)."""
    _, height, _, small_height, _ = sizes
    at = tl.cast(row, tl.int32)  # a tensor for the interpreter too
    top, bottom, weight = resize_pair(at, small_height, height, align_corners)
    alone = top == bottom
    weight = tl.where(alone, 0.0, weight)
    return (1.0 - weight) * b_top + weight * tl.where(alone, 0.0, b_bottom), weight


def tile_launch(positions: int, channels: int, inner: bool, multiple: int) -> Launch:
    constants = {"POSITIONS": positions, "CHANNELS": channels, "INNER": inner}
    return Launch(constants | {"MULTIPLE": multiple}, warps=4, registers=255)


def cell_launch(inner: bool, multiple: int) -> Launch:
    """A thread owns 16 bytes of a row, in half precision."""
    positions, channels = (16, 64) if inner else (64, 16)
    return tile_launch(positions, channels, inner, multiple)


def cell_launches(dtype: str) -> list[Launch]:
    return [cell_launch(inner, n) for inner in (False, True) for n in FACTORS[dtype]]


def launch_of(x: torch.Tensor) -> Launch:
    inner = is_channels_inner(x)
    return cell_launch(inner, known_factor(x, x.shape[1] if inner else x.shape[3]))


def cell_programs(x: torch.Tensor, logits: torch.Tensor, splits: int, launch: Launch) -> int:
    batch, channels, _, width = x.shape
    tiles = triton.cdiv(width, launch.constants["POSITIONS"])
    blocks = triton.cdiv(channels, launch.constants["CHANNELS"])
    return batch * logits.shape[2] * splits * tiles * blocks


def splits_of(x: torch.Tensor, logits: torch.Tensor, rows: int) -> int:
    """Programs among which the rows of a cell are split, about `rows` for each."""
    return max(1, round(x.shape[2] / (logits.shape[2] * rows)))
