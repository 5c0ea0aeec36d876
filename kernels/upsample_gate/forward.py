"""Triton forward of upsample_gate: a map times a gate that is resized on the fly.

Source: Li et al., GALD (BMVC 2019), eq. (2); Zhong et al., SANet (CVPR 2020), eq. (3).

The small map stays in the caches.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl

from ..._layout import empty_map, is_channels_inner
from .._bilinear import resize_pair
from .._launch import TRITON_DTYPES, AotCase, Launch, on_device, refuse_tensor, run
from .._tiles import owned_block, tile_offsets

UNSPECIALIZED = [
    "channels",
    "height",
    "width",
    "small_height",
    "small_width",
    "activation",
    "activation_first",
    "residual",
    "align_corners",
]


@triton.jit
def activate(b_z, activation):
    """identity (0), sigmoid (1) or ReLU (2); NaN stays NaN."""
    b_sigmoid = 1.0 / (1.0 + tl.exp(-b_z))
    b_relu = tl.where(b_z < 0, 0.0, b_z)
    return tl.where(activation == 1, b_sigmoid, tl.where(activation == 2, b_relu, b_z))


@triton.jit
def load_logits(p_item, b_pixel, b_channel, mask, channels, area, first, INNER: tl.constexpr):
    """Logits [POSITIONS, CHANNELS], activated by `first` (0: not)."""
    p_tile = p_item + tile_offsets(b_pixel, b_channel, channels, area, INNER)
    return activate(tl.load(p_tile, mask=mask, other=0.0).to(tl.float32), first)


@triton.jit
def resized_logits(
    p_item,
    b_row,
    b_column,
    b_channel,
    mask,
    channels,
    sizes,
    first,
    align_corners,
    INNER: tl.constexpr,
):
    """Bilinear resize of the logits at pixels (row, column): [POSITIONS, CHANNELS].

    sizes: height, width, small_height and small_width.
    """
    height, width, small_height, small_width = sizes
    top, bottom, down = resize_pair(b_row, small_height, height, align_corners)
    left, right, across = resize_pair(b_column, small_width, width, align_corners)
    top, bottom = top * small_width, bottom * small_width
    area = small_height * small_width
    b_tl = load_logits(p_item, top + left, b_channel, mask, channels, area, first, INNER)
    b_tr = load_logits(p_item, top + right, b_channel, mask, channels, area, first, INNER)
    b_bl = load_logits(p_item, bottom + left, b_channel, mask, channels, area, first, INNER)
    b_br = load_logits(p_item, bottom + right, b_channel, mask, channels, area, first, INNER)
    across = across[:, None]
    down = down[:, None]
    b_top = (1.0 - across) * b_tl + across * b_tr
    b_bottom = (1.0 - across) * b_bl + across * b_br
    return (1.0 - down) * b_top + down * b_bottom


@triton.jit(do_not_specialize=UNSPECIALIZED)
def gate_kernel(
    p_x,
    p_logits,
    p_out,
    input_weight,
    channels,
    height,
    width,
    small_height,
    small_width,
    activation,
    activation_first,
    residual,
    align_corners,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    INNER: tl.constexpr,
):
    """out = g * x + input_weight * x (residual 1), + g (2) or nothing (0), g the resized gate.

    p_x, p_out [B, C, H, W], p_logits [B, C, h, w], or channels last with INNER.
    Grid: B * ceil(C / CHANNELS) * ceil(H * W / POSITIONS); one program owns a run of pixels of a
    few channels of one item. Reads x and writes out once; logits come out of the caches.
    """
    area = height * width
    tiles = tl.cdiv(area, POSITIONS)
    blocks = tl.cdiv(channels, CHANNELS)
    tile, block, batch = owned_block(tiles, blocks, INNER)
    batch = batch.to(tl.int64)
    sizes = (height, width, small_height, small_width)
    b_pixel = tile * POSITIONS + tl.arange(0, POSITIONS)
    b_channel = block * CHANNELS + tl.arange(0, CHANNELS)
    mask = (b_pixel < area)[:, None] & (b_channel < channels)[None, :]
    b_pixel = tl.minimum(b_pixel, area - 1)
    first = tl.where(activation_first != 0, activation, 0)
    after = tl.where(activation_first != 0, 0, activation)
    p_item = p_logits + batch * channels * small_height * small_width
    b_row, b_column = b_pixel // width, b_pixel % width
    b_z = resized_logits(
        p_item, b_row, b_column, b_channel, mask, channels, sizes, first, align_corners, INNER
    )
    b_gate = activate(b_z, after)
    place = batch * channels * area + tile_offsets(b_pixel, b_channel, channels, area, INNER)
    b_x = tl.load(p_x + place, mask=mask, other=0.0).to(tl.float32)
    b_out = b_gate * b_x
    b_out = tl.where(residual == 1, b_out + input_weight * b_x, b_out)
    b_out = tl.where(residual == 2, b_out + b_gate, b_out)
    tl.store(p_out + place, b_out.to(p_out.dtype.element_ty), mask=mask)


def tile_launch(positions: int, channels: int, inner: bool) -> Launch:
    constants = {"POSITIONS": positions, "CHANNELS": channels, "INNER": inner}
    return Launch(constants, warps=4, registers=255)


# Along the contiguous axis a program reads at least 64 elements where the map has them.
FORWARD = {False: tile_launch(1024, 1, False), True: tile_launch(16, 64, True)}


def integers(x: torch.Tensor, logits: torch.Tensor, options: tuple[Any, ...]) -> tuple[int, ...]:
    """The integers that every kernel takes last."""
    activation, activation_first, residual, _, align_corners = options
    sizes = (*x.shape[1:], *logits.shape[2:])
    return *sizes, activation, int(activation_first), residual, int(align_corners)


def forward(x: torch.Tensor, logits: torch.Tensor, *options: Any) -> tuple[torch.Tensor]:
    """out [B, C, H, W] for x of this shape and logits [B, C, h, w] in its layout."""
    inner = is_channels_inner(x)
    batch, channels, height, width = x.shape
    out = empty_map(x.shape, x, inner)
    launch = FORWARD[inner]
    tiles = triton.cdiv(height * width, launch.constants["POSITIONS"])
    programs = batch * tiles * triton.cdiv(channels, launch.constants["CHANNELS"])
    with on_device(x, logits) as (x, logits):
        sizes = integers(x, logits, options)
        run(gate_kernel, programs, x, logits, out, options[3], *sizes, launch=launch)
    return (out,)


def refuse(x: torch.Tensor, logits: torch.Tensor, *options: Any) -> str | None:
    """The reason why these kernels cannot run an input, None if they can."""
    for size in (x.shape, logits.shape):
        if size[2] * size[3] >= 2**31 - 1024 or max(size[2:]) >= 2**24:
            return "triton: maps must have fewer than 2**31 pixels and sides below 2**24"
    programs = x.shape[0] * x.shape[1] * (1 + max(x.shape[2] * x.shape[3] // 64, logits.shape[2]))
    if programs >= 2**31 or logits.numel() >= 2**31:
        return "triton: the map is too large for one grid"
    return refuse_tensor(x)


def aot_cases() -> list[AotCase]:
    """Every compilation that `forward` can ask for."""
    cases = []
    for dtype, inner in product(TRITON_DTYPES.values(), (False, True)):
        pointers = dict.fromkeys(("p_x", "p_logits", "p_out"), dtype)
        cases.append(AotCase(gate_kernel, pointers, FORWARD[inner], {"input_weight": "fp32"}))
    return cases
