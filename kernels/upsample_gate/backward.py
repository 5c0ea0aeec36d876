"""Triton backward of upsample_gate.

One pass over the map: a cell sums the gate's gradients of its columns vertically, for the row of
logits above and for the one below. A second kernel adds those up along the columns. Everything is
gathered, no atomics.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from ..._layout import empty_map, is_channels_inner
from .._bilinear import cell_begin, resize_pair, share_of
from .._launch import TRITON_DTYPES, AotCase, Launch, on_device, run
from .._multiples import FACTORS, known_multiple
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
    tile_launch,
)
from .forward import integers

ROWS = 8  # of a program, about


@triton.jit
def activate_backward(b_z, b_gate, b_grad, activation):
    """Gradient of z for that of the gate. PyTorch passes gradients through the ReLU of NaN."""
    if activation == 1:
        b_grad = b_grad * ((1.0 - b_gate) * b_gate)
    elif activation == 2:
        b_grad = tl.where(b_z <= 0, 0.0, b_grad)
    return b_grad


@triton.jit(do_not_specialize=[*SIZES, *OPTIONS])
def gate_cells_backward_kernel(
    p_grad,
    p_x,
    p_logits,
    p_dx,
    p_sums,
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
    """dx, and sums[i, split, 0 or 1, x] = sum over its rows y of weight(y, i or i + 1) * dz[y, x].

    p_grad, p_x, p_dx [B, C, H, W], p_logits [B, C, h, w], or channels last with INNER;
    p_sums [B, h, splits, 2, C, W] float32, with INNER [B, h, splits, 2, W, C]. dz is the gradient
    of the resized logits. Grid as in gate_kernel. Reads x and grad and writes dx once.
    """
    if INNER:
        channels = known_multiple(channels, MULTIPLE)
    else:
        width = known_multiple(width, MULTIPLE)
    sizes = (channels, height, width, small_height, small_width)
    batch, source, split, begin, end, b_column, b_channel = owned_cell(
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
    b_above = tl.zeros([POSITIONS, CHANNELS], tl.float32)
    b_below = tl.zeros([POSITIONS, CHANNELS], tl.float32)
    for row in range(begin, end):
        b_here = b_place + row * stride
        b_x = tl.load(p_x + b_here, mask=mask, other=0.0).to(tl.float32)
        b_grad = tl.load(p_grad + b_here, mask=mask, other=0.0).to(tl.float32)
        b_z, weight = mix_rows(b_top, b_bottom, row, sizes, align_corners)
        b_gate = activate(b_z, after)
        b_dx = b_grad * b_gate
        b_dgate = b_grad * b_x
        if residual == 1:
            b_dx += input_weight * b_grad
        elif residual == 2:
            b_dgate += b_grad
        tl.store(p_dx + b_here, b_dx.to(p_dx.dtype.element_ty), mask=mask)
        b_dz = activate_backward(b_z, b_gate, b_dgate, after)
        b_above += (1.0 - weight) * b_dz
        # A row that is not read gets nothing, not even NaN.
        b_below += tl.where(weight > 0.0, weight * b_dz, 0.0)
    plane = channels.to(tl.int64) * width
    p_sums += ((batch * small_height + source) * splits + split) * 2 * plane
    b_place = tile_offsets(b_column, b_channel, channels, width, INNER)
    tl.store(p_sums + b_place, b_above, mask=mask)
    tl.store(p_sums + plane + b_place, b_below, mask=mask)


@triton.jit(do_not_specialize=[*SIZES, *OPTIONS])
def gate_columns_backward_kernel(
    p_sums,
    p_logits,
    p_out,
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
    """dlogits[i, j] = sum over x of weight(x, j) * (sums[i, :, 0, x] + sums[i - 1, :, 1, x]).

    Pointers as in gate_cells_backward_kernel; p_out like p_logits. Times the activation's
    derivative where it came first.
    Grid: B * h * w * ceil(C / CHANNELS); one program owns one logit of a few channels of one item.
    Reads the sums once a tap.
    """
    if INNER:
        channels = known_multiple(channels, MULTIPLE)
    blocks = tl.cdiv(channels, CHANNELS)
    block = tl.program_id(0) % blocks
    pixel = (tl.program_id(0) // blocks) % (small_height * small_width)
    batch = (tl.program_id(0) // (blocks * small_height * small_width)).to(tl.int64)
    row, source = pixel // small_width, pixel % small_width
    b_channel = block * CHANNELS + tl.arange(0, CHANNELS)
    in_channels = b_channel < channels
    plane = channels.to(tl.int64) * width
    p_sums += (batch * small_height + row) * splits * 2 * plane
    before = (1 - 2 * splits) * plane  # from the sums of a row to those of the row above for it
    begin = cell_begin(tl.maximum(source - 1, 0), small_width, width, align_corners)
    end = cell_begin(source + 1, small_width, width, align_corners)
    b_out = tl.zeros([POSITIONS, CHANNELS], tl.float32)
    for start in range(begin, end, POSITIONS):
        b_column = start + tl.arange(0, POSITIONS)
        left, right, weight = resize_pair(b_column, small_width, width, align_corners)
        share = share_of(left, right, weight, source)
        reads = (b_column < end) & (share > 0.0)
        mask = reads[:, None] & in_channels[None, :]
        b_place = tile_offsets(b_column, b_channel, channels, width, INNER)
        b_sum = tl.zeros([POSITIONS, CHANNELS], tl.float32)
        for split in range(splits):
            p_tile = p_sums + (b_place + split * 2 * plane)
            b_sum += tl.load(p_tile, mask=mask, other=0.0)
            b_sum += tl.load(p_tile + before, mask=mask & (row > 0), other=0.0)
        b_out += tl.where(mask, share[:, None] * b_sum, 0.0)
    b_total = tl.sum(b_out, axis=0)
    area = small_height * small_width
    place = batch * channels * area
    if INNER:
        place += pixel * channels + b_channel
    else:
        place += b_channel * area + pixel
    if activation_first != 0:
        b_z = tl.load(p_logits + place, mask=in_channels, other=0.0).to(tl.float32)
        b_total = activate_backward(b_z, activate(b_z, activation), b_total, activation)
    tl.store(p_out + place, b_total.to(p_out.dtype.element_ty), mask=in_channels)


def columns_launch(inner: bool, multiple: int) -> Launch:
    positions, channels = (8, 128) if inner else (32, 32)
    return tile_launch(positions, channels, inner, multiple)


def backward(
    grad: torch.Tensor, x: torch.Tensor, logits: torch.Tensor, *options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """dx like x, dlogits like logits."""
    inner = is_channels_inner(x)
    batch, channels, _, width = x.shape
    small_height, small_width = logits.shape[2:]
    dx, dlogits = empty_map(x.shape, x, inner), empty_map(logits.shape, x, inner)
    launch, splits = launch_of(x), splits_of(x, logits, ROWS)
    sums = x.new_empty((batch, small_height, splits, 2, channels * width), dtype=torch.float32)
    columns = columns_launch(inner, launch.constants["MULTIPLE"] if inner else 1)
    blocks = triton.cdiv(channels, columns.constants["CHANNELS"])
    with on_device(grad, x, logits) as maps:
        numbers = integers(x, logits, splits, options)
        run(
            gate_cells_backward_kernel,
            cell_programs(x, logits, splits, launch),
            *maps,
            dx,
            sums,
            options[3],
            *numbers,
            launch=launch,
        )
        run(
            gate_columns_backward_kernel,
            batch * small_height * small_width * blocks,
            sums,
            maps[2],
            dlogits,
            *numbers,
            launch=columns,
        )
    return dx, dlogits


def aot_cases() -> list[AotCase]:
    """Every compilation that `backward` can ask for."""
    cases = []
    for dtype in TRITON_DTYPES.values():
        pointers = dict.fromkeys(("p_grad", "p_x", "p_logits", "p_dx"), dtype) | {"p_sums": "fp32"}
        for launch in cell_launches(dtype):
            scalars = {"input_weight": "fp32"}
            cases.append(AotCase(gate_cells_backward_kernel, pointers, launch, scalars))
        pointers = {"p_sums": "fp32", "p_logits": dtype, "p_out": dtype}
        for inner, multiple in ((False, 1), *((True, n) for n in FACTORS[dtype])):
            launch = columns_launch(inner, multiple)
            cases.append(AotCase(gate_columns_backward_kernel, pointers, launch))
    return cases
