"""Triton forward of upsample_gate: a map times a gate that is resized on the fly.

Source: Li et al., GALD (BMVC 2019), eq. (2); Zhong et al., SANet (CVPR 2020), eq. (3).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from ..._layout import empty_map, is_channels_inner
from .._launch import TRITON_DTYPES, AotCase, on_device, refuse_tensor, run
from .._multiples import known_multiple
from .._tiles import tile_offsets
from .cells import (
    OPTIONS,
    SIZES,
    activate,
    cell_launches,
    cell_programs,
    launch_of,
    mix_rows,
    mixed_row,
    owned_cell,
    splits_of,
)

ROWS = 4  # of a program, about


@triton.jit(do_not_specialize=[*SIZES, *OPTIONS])
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
    splits,
    activation,
    activation_first,
    residual,
    align_corners,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    INNER: tl.constexpr,
    MULTIPLE: tl.constexpr,
):
    """out = g * x + input_weight * x (residual 1), + g (2) or nothing (0), g the resized gate.

    p_x, p_out [B, C, H, W], p_logits [B, C, h, w], or channels last with INNER; channels with
    INNER, else the width is a multiple of MULTIPLE.
    Grid: B * h * splits * ceil(W / POSITIONS) * ceil(C / CHANNELS); one program owns columns of a
    few channels in a split of a cell row. Reads x and writes out once; four logits a column.
    """
    if INNER:
        channels = known_multiple(channels, MULTIPLE)
    else:
        width = known_multiple(width, MULTIPLE)
    sizes = (channels, height, width, small_height, small_width)
    batch, source, _split, begin, end, b_column, b_channel = owned_cell(
        sizes, splits, align_corners, POSITIONS, CHANNELS, INNER
    )
    mask = (b_column < width)[:, None] & (b_channel < channels)[None, :]
    first = tl.where(activation_first != 0, activation, 0)
    after = tl.where(activation_first != 0, 0, activation)
    p_item = p_logits + batch * channels * small_height * small_width
    below = tl.minimum(source + 1, small_height - 1)
    b_top = mixed_row(p_item, source, b_column, b_channel, mask, sizes, first, align_corners, INNER)
    b_bottom = mixed_row(
        p_item, below, b_column, b_channel, mask, sizes, first, align_corners, INNER
    )
    area = height * width
    stride = (width * channels if INNER else width).to(tl.int64)
    b_place = batch * channels * area + tile_offsets(b_column, b_channel, channels, area, INNER)
    for row in range(begin, end):
        b_x = tl.load(p_x + (b_place + row * stride), mask=mask, other=0.0).to(tl.float32)
        b_z, _weight = mix_rows(b_top, b_bottom, row, sizes, align_corners)
        b_gate = activate(b_z, after)
        b_out = b_gate * b_x
        if residual == 1:
            b_out += input_weight * b_x
        elif residual == 2:
            b_out += b_gate
        tl.store(p_out + (b_place + row * stride), b_out.to(p_out.dtype.element_ty), mask=mask)


def integers(
    x: torch.Tensor, logits: torch.Tensor, splits: int, options: tuple[Any, ...]
) -> tuple[int, ...]:
    """The integers that every kernel takes last."""
    activation, activation_first, residual, _, align_corners = options
    sizes = (*x.shape[1:], *logits.shape[2:], splits)
    return *sizes, activation, int(activation_first), residual, int(align_corners)


def forward(x: torch.Tensor, logits: torch.Tensor, *options: Any) -> tuple[torch.Tensor]:
    """out [B, C, H, W] for x of this shape and logits [B, C, h, w] in its layout."""
    out = empty_map(x.shape, x, is_channels_inner(x))
    launch, splits = launch_of(x), splits_of(x, logits, ROWS)
    programs = cell_programs(x, logits, splits, launch)
    with on_device(x, logits) as (x, logits):
        numbers = integers(x, logits, splits, options)
        run(gate_kernel, programs, x, logits, out, options[3], *numbers, launch=launch)
    return (out,)


def refuse(x: torch.Tensor, logits: torch.Tensor, *options: Any) -> str | None:
    """The reason why these kernels cannot run an input, None if they can."""
    for size in (x.shape, logits.shape):
        if size[2] * size[3] >= 2**31 - 1024 or max(size[2:]) >= 2**24:
            return "triton: maps must have fewer than 2**31 pixels and sides below 2**24"
    rows = logits.shape[2] + x.shape[2]  # of cells, split
    programs = x.shape[0] * x.shape[1] * rows * (1 + max(x.shape[3], logits.shape[3]) // 16)
    if programs >= 2**31 or logits.numel() >= 2**31:
        return "triton: the map is too large for one grid"
    return refuse_tensor(x)


def aot_cases() -> list[AotCase]:
    """Every compilation that `forward` can ask for."""
    cases = []
    for dtype in TRITON_DTYPES.values():
        pointers = dict.fromkeys(("p_x", "p_logits", "p_out"), dtype)
        for launch in cell_launches(dtype):
            cases.append(AotCase(gate_kernel, pointers, launch, {"input_weight": "fp32"}))
    return cases
